#!/usr/bin/env bash
# Measures what recipes/performance.md tells: every stage beside the obvious way, on random inputs and on the digits.
#
#   recipes/bench.sh [OUT] [PART...]      default: runs/bench, all parts: stages growth options processes digits
#
# Results are JSON files in OUT; what is there is kept. Nothing else should run meanwhile.
# BENCH holds options of `mfkit bench`; without them a batch is 8 on a CPU, and the generator's size S. On a GPU:
#   BENCH="--precision bf16 --compile" ROWS=32 TOKENS=256 recipes/bench.sh
# The part digits takes the files that recipes/digits.sh made in DIGITS (default: runs/digits).
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
digits=$(realpath -m "${DIGITS:-runs/digits}")
out=${1:-runs/bench}
shift $(($# > 0 ? 1 : 0))
read -ra bench <<<"${BENCH:-}"
rows=${ROWS:-2}

mkdir -p "$out"
cd "$out"

stages() {
    for stage in distill bootstrap train-teacher midtrain encode trajectories sample loader derivative; do
        write "$stage.json" mfkit bench "$stage" "${bench[@]}" --json
    done
}

# Time and memory as the tokens grow, and as the network does.
growth() {
    for tokens in 64 256 1024; do
        write "tokens-$tokens.json" mfkit bench train-teacher "${bench[@]}" --tokens "$tokens" --batch-size "$rows" \
            --no-plain --json
    done
    for model in S B L XL; do
        write "model-$model.json" mfkit bench train-teacher "${bench[@]}" --model "$model" --batch-size "$rows" \
            --tokens "${TOKENS:-64}" --no-plain --json
    done
}

# What the options of execution do to a step.
options() {
    for option in none activation-checkpointing compile; do
        write "option-$option.json" mfkit bench distill "${bench[@]}" --tokens "${TOKENS:-64}" --no-plain --json \
            $([ "$option" = none ] || echo "--$option")
    done
}

# One process and two, with a core each.
processes() {
    for count in 1 2; do
        OMP_NUM_THREADS=1 write "processes-$count.json" torchrun --standalone --nproc_per_node "$count" -m mfkit \
            bench distill --preset digits --batch-size 64 --no-plain --rounds 9 --json
    done
}

digits() {
    for part in pairs precision order pipe memory; do
        write "$part.json" python "$recipes/bench_digits.py" "$digits" "$part"
    done
}

for part in ${*:-stages growth options processes digits}; do
    "$part"
done
