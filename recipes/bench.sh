#!/usr/bin/env bash
# Measures what recipes/README.md tells of speed and memory, on random inputs and on the digits.
#
#   recipes/bench.sh [OUT] [PART...]      default: runs/bench, all parts: stages plain growth options late_r
#                                         processes evaluation digits
#
# Results are JSON files in OUT; what is there is kept. Nothing else should run meanwhile.
# BENCH holds options of `mfkit bench`; without them a batch is 8, the generator S, a latent 64 tokens. On a GPU:
#   BENCH="--precision bf16" ROWS=32 TOKENS=256 recipes/bench.sh          (or at once: recipes/gpu.sh)
# The part digits takes the files that recipes/digits.sh made in DIGITS (default: runs/digits).
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
digits=$(realpath -m "${DIGITS:-runs/digits}")
out=${1:-runs/bench}
shift $(($# > 0 ? 1 : 0))
read -ra bench <<<"${BENCH:---model S --tokens 64}"
rows=${ROWS:-2} tokens=${TOKENS:-64}

mkdir -p "$out"
cd "$out"

stages() {
    for stage in distill bootstrap train-teacher midtrain encode trajectories sample loader; do
        write "$stage.json" mfkit bench "$stage" "${bench[@]}" --json
    done
    python "$recipes/bench_table.py" {distill,bootstrap,train-teacher,midtrain,encode,trajectories,sample,loader}.json
}

# A step beside the plain formulation of its loss, and the ways to du/dt.
plain() {
    for stage in distill bootstrap; do
        write "plain-$stage.json" python "$recipes/plain.py" "$stage" S "$tokens"
    done
}

# Time and memory as the tokens grow, and as the network does.
growth() {
    for count in 64 256 1024; do
        write "tokens-$count.json" mfkit bench train-teacher "${bench[@]}" --tokens "$count" --batch-size "$rows" --json
    done
    for model in S B L XL; do
        write "model-$model.json" mfkit bench train-teacher "${bench[@]}" --model "$model" --batch-size "$rows" \
            --tokens "$tokens" --json
    done
    python "$recipes/bench_table.py" tokens-{64,256,1024}.json model-{S,B,L,XL}.json
}

# What the options of execution do to a step.
options() {
    for option in none activation-checkpointing compile; do
        write "option-$option.json" mfkit bench distill "${bench[@]}" --tokens "$tokens" --json \
            $([ "$option" = none ] || echo "--$option")
    done
    python "$recipes/bench_table.py" option-{none,activation-checkpointing,compile}.json
}

# Losses that ask for u at several r, and what they cost where r reaches the head alone.
late_r() {
    for objective in imf self-split arrival; do
        write "$objective.json" mfkit bench distill "${bench[@]}" --tokens "$tokens" --objective $objective --json
        write "$objective-late-r.json" mfkit bench distill "${bench[@]}" --tokens "$tokens" --objective $objective \
            --late-r --json
    done
    python "$recipes/bench_table.py" {imf,self-split,arrival}{,-late-r}.json
}

# One process and two, with a core each.
processes() {
    for count in 1 2; do
        OMP_NUM_THREADS=1 write "processes-$count.json" torchrun --standalone --nproc_per_node "$count" -m mfkit \
            bench distill --preset digits --batch-size 64 --rounds 50 --json
    done
}

# mfkit fid as the images grow.
evaluation() {
    for size in "1000 64" "10000 64" "100000 64" "1000 256" "50000 256"; do
        write "evaluation-${size/ /-}.json" python "$recipes/bench_evaluation.py" $size
    done
}

digits() {
    for part in pairs precision order pipe memory; do
        write "$part.json" python "$recipes/bench_digits.py" "$digits" "$part"
    done
}

for part in ${*:-stages plain growth options late_r processes evaluation digits}; do
    "$part"
done
