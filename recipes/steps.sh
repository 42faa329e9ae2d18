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

# side_by_side FUNCTION...: runs them at the same time, each with its share of the cores; fails if one of them does.
# Small networks do more in two processes of one thread than in one of two: a step has too little to share.
side_by_side() {
    local lane part status=0 parts=() cores
    cores=$(getconf _NPROCESSORS_ONLN)
    trap 'trap - INT TERM; kill 0' INT TERM # bash keeps Ctrl-C from what runs in its background
    for lane; do
        OMP_NUM_THREADS=$((cores > $# ? cores / $# : 1)) "$lane" &
        parts+=($!)
    done
    for part in "${parts[@]}"; do wait "$part" || status=$?; done
    trap - INT TERM
    return "$status"
}
