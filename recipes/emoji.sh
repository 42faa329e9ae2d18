#!/usr/bin/env bash
# The chain on a folder of colour images as you may have one: 1,384 emoji of 64 pixels in 8 groups, drawn from the Noto
# Color Emoji font (Debian: apt install fonts-noto-color-emoji unicode-data).
#
#   recipes/emoji.sh [OUT]                default: runs/emoji
#
# grid.png: real, reconstructed, teacher at 50 steps with guidance, student at one without; report.json: how good they
# are. Run it again after an interruption: what is finished is kept. STEPS, TRAJECTORIES and SAMPLES shorten it.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/emoji}
guided=(--guidance 2 --guidance-interval 0.1 0.95)

# steps N: so many, unless STEPS says otherwise.
steps() { echo "--steps ${STEPS:-$1}"; }

mkdir -p "$out"
cd "$out"

make images python "$recipes/emoji.py" images
# 16 tokens a picture: a fourth of the preset's, so that a teacher sees four times as many pictures in its minutes.
make rae.safetensors mfkit train-rae images/train --encoder tiny --patch 16 -o rae.safetensors $(steps 1500) \
    ${STEPS:+--pretrain-steps $STEPS}
make latents/index.json mfkit encode images/train --rae rae.safetensors -o latents --mirror
make teacher.safetensors mfkit train-teacher latents -o teacher.safetensors $(steps 12000)
make traj/index.json mfkit trajectories --teacher teacher.safetensors -n "${TRAJECTORIES:-8000}" -o traj "${guided[@]}"
make cmt.safetensors mfkit midtrain traj --teacher teacher.safetensors -o cmt.safetensors $(steps 6000)

distilled() {
    make mfd.safetensors mfkit distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors \
        "${guided[@]}" $(steps 300)
    make samples/mfd-1/index.json mfkit sample mfd.safetensors -n "${SAMPLES:-2000}" -o samples/mfd-1
}

drifting() {
    make drift.safetensors mfkit bootstrap --init cmt.safetensors --objective drifting -o drift.safetensors $(steps 300)
    make samples/drift-1/index.json mfkit sample drift.safetensors -n "${SAMPLES:-2000}" -o samples/drift-1
}

side_by_side distilled drifting
make samples/teacher-1/index.json mfkit sample teacher.safetensors -n "${SAMPLES:-2000}" -o samples/teacher-1 \
    "${guided[@]}"
make curves.png mfkit plot teacher.log.jsonl cmt.log.jsonl drift.log.jsonl -o curves.png
write report.json python "$recipes/report.py" . images
cat report.json
