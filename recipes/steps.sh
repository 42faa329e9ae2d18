# What recipes share: a step runs unless its result is there, so that an interrupted recipe goes on. Sourced by them.

# make TARGET COMMAND...: runs the command unless its target is there.
make() {
    local target=$1
    shift
    [ -e "$target" ] || { echo "$*" >&2; "$@" >/dev/null; }
}

# write TARGET COMMAND...: the same, for a command that prints its result.
write() {
    local target=$1
    shift
    [ -e "$target" ] || { echo "$* > $target" >&2; "$@" >"$target.partial"; mv "$target.partial" "$target"; }
}
