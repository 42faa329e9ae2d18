#!/usr/bin/env bash
# From pixels to one-step images on scikit-learn's 1,797 handwritten digits: the paper's chain, then the better one, in
# which drifting takes the place of distillation and bootstrapping; and how good all are.
#
#   recipes/digits.sh [OUT] [SEED]        default: runs/digits, seed 0
#
# Run it again after an interruption: what is finished is kept, a training goes on from its checkpoint.
# STEPS, TRAJECTORIES and SAMPLES shorten it (recipes/smoke.sh does); NOISES=3 measures on as many sets of images.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/digits}
seed=${2:-0}
short=${STEPS:+--steps $STEPS}

mkdir -p "$out"
cd "$out"

make rae.safetensors mfkit train-rae digits:train --encoder tiny -o rae.safetensors --seed "$seed" \
    $short ${STEPS:+--pretrain-steps $STEPS}
make latents/index.json mfkit encode digits:train --rae rae.safetensors -o latents
make teacher.safetensors mfkit train-teacher latents -o teacher.safetensors --seed "$seed" $short
make traj/index.json mfkit trajectories --teacher teacher.safetensors -n "${TRAJECTORIES:-2000}" -o traj --seed "$seed"
make cmt.safetensors mfkit midtrain traj --teacher teacher.safetensors -o cmt.safetensors --seed "$seed" $short

# sample MODEL: draws its images, NOISES sets of them.
sample() {
    for noise in $(seq "${NOISES:-1}"); do
        make "samples/$1-$noise/index.json" mfkit sample "$1.safetensors" -n "${SAMPLES:-2000}" \
            -o "samples/$1-$noise" --seed $((1000 * noise + seed))
    done
}

papers_chain() {
    make mfd.safetensors mfkit distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors \
        --seed "$seed" $short
    make mft.safetensors mfkit bootstrap --init mfd.safetensors -o mft.safetensors --seed "$seed" $short
    sample mft
    sample teacher
}

better_chain() {
    make drift.safetensors mfkit bootstrap --init cmt.safetensors --objective drifting -o drift.safetensors \
        --seed "$seed" $short
    sample drift
}

report() {
    rm -f report.json # which may be of fewer sets of images
    write report.json python "$recipes/report.py" .
}

fid_and_curves() {
    write fid.json mfkit fid samples/drift-1 --reference digits:train --features rae.safetensors --diversity
    write fid-teacher.json mfkit fid samples/teacher-1 --reference digits:train --features rae.safetensors --diversity
    make curves.png mfkit plot teacher.log.jsonl cmt.log.jsonl mfd.log.jsonl mft.log.jsonl drift.log.jsonl -o curves.png
}

side_by_side papers_chain better_chain
side_by_side report fid_and_curves
cat report.json
