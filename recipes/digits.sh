#!/usr/bin/env bash
# The whole chain on scikit-learn's 1,797 handwritten digits, from pixels to one-step images and how good they are.
#
#   recipes/digits.sh [OUT] [SEED]        default: runs/digits, seed 0
#
# Run it again after an interruption: what is finished is kept, a training goes on from its checkpoint.
# STEPS, TRAJECTORIES and SAMPLES shorten it (recipes/smoke.sh does).
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/digits}
seed=${2:-0}
short=${STEPS:+--steps $STEPS}
samples=${SAMPLES:-2000}

mkdir -p "$out"
cd "$out"

make rae.safetensors mfkit train-rae digits:train --encoder tiny -o rae.safetensors --seed "$seed" \
    $short ${STEPS:+--pretrain-steps $STEPS}
make latents/index.json mfkit encode digits:train --rae rae.safetensors -o latents
make teacher.safetensors mfkit train-teacher latents -o teacher.safetensors --seed "$seed" $short
make traj/index.json mfkit trajectories --teacher teacher.safetensors -n "${TRAJECTORIES:-8000}" -o traj --seed "$seed"
make cmt.safetensors mfkit midtrain traj --teacher teacher.safetensors -o cmt.safetensors --seed "$seed" $short
make mfd.safetensors mfkit distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors \
    --seed "$seed" $short
make mft.safetensors mfkit bootstrap --init mfd.safetensors -o mft.safetensors --seed "$seed" $short

make samples/index.json mfkit sample mft.safetensors -n "$samples" --nfe 1 --seed "$seed" -o samples
make teacher-samples/index.json mfkit sample teacher.safetensors -n "$samples" --nfe 50 --seed "$seed" \
    -o teacher-samples

judge=(--reference digits:train --features rae.safetensors --diversity)
write fid.json mfkit fid samples "${judge[@]}"
write fid-teacher.json mfkit fid teacher-samples "${judge[@]}"
write flops.json mfkit flops mft.safetensors --json
make curves.png mfkit plot teacher.log.jsonl cmt.log.jsonl mfd.log.jsonl mft.log.jsonl -o curves.png
write report.json python "$recipes/digits_report.py" .
cat report.json
