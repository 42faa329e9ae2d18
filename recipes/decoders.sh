#!/usr/bin/env bash
# Which losses make a decoder sharp? New decoders for the latents of the digits, on three seeds; all else stays.
#
#   recipes/decoders.sh [OUT]             default: runs/objectives, whose runs of digits.sh are taken
#
# EMOJI: a run of emoji.sh, for decoders of its latents too. SEEDS: "0 1 2"; STEPS shortens it. Run it again after an
# interruption: what is finished is kept. OUT/decoders.md and OUT/decoders-emoji.png are what recipes/README.md shows. The
# judge is the encoder of another seed, which no decoder here has seen, and the pixels.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/objectives}
read -ra seeds <<<"${SEEDS:-0 1 2}"

# decoder NAME OPTION...: a new decoder, and how good it is.
decoder() {
    local name=$1
    shift
    make "$name.safetensors" mfkit train-rae "$train" --encoder ../rae.safetensors --keep-latents --seed "$seed" \
        ${steps:+--steps $steps} -o "$name.safetensors" "$@"
    judged "$name" "$name.safetensors"
}

# judged NAME RAE: what its decoder makes of the held-out images, and of the drifting student's latents.
judged() {
    local name=$1 rae=$2
    make "$name-held-out.npz" mfkit decode held-out --rae "$rae" -o "$name-held-out.npz"
    make "$name-drawn.npz" mfkit sample ../drift.safetensors -n 2000 --seed "$((1000 + seed))" --rae "$rae" \
        -o "$name-drawn.npz"
    write "$name-held-out.json" mfkit fid "$name-held-out.npz" --reference "$held_out" --features "$judge,pixels" \
        --paired psnr,ssim
    write "$name-drawn.json" mfkit fid "$name-drawn.npz" --reference "$train" --features "$judge,pixels"
}

plain() {
    decoder l1 --perceptual none --discriminator none
    decoder adversary --perceptual none --discriminator encoder
}
by_layers() {
    decoder layers --perceptual encoder --discriminator none
    decoder both --perceptual encoder --discriminator encoder
}

# decoders TRAIN HELD_OUT STEPS: of the run in the folder above.
decoders() {
    train=$1 held_out=$2 steps=$3
    make held-out/index.json mfkit encode "$held_out" --rae ../rae.safetensors -o held-out
    side_by_side plain by_layers
}

emoji=${EMOJI:+$(realpath "$EMOJI")}
mkdir -p "$out"
cd "$out"
for seed in "${seeds[@]}"; do
    [ -e "seed-$seed/report.json" ] || "$recipes/digits.sh" "seed-$seed" "$seed" >/dev/null
done
for seed in "${seeds[@]}"; do
    judge=$PWD/seed-$(((seed + 1) % ${#seeds[@]}))/rae.safetensors
    mkdir -p "seed-$seed/decoders"
    cd "seed-$seed/decoders"
    decoders digits:train digits:heldout "${STEPS:-}"
    cd ../..
done
if [ "$emoji" ]; then
    seed=0 judge=$emoji/decoders/judge.safetensors
    mkdir -p "$emoji/decoders"
    (
        cd "$emoji/decoders"
        make judge.safetensors mfkit train-rae ../images/train --encoder tiny --patch 16 --seed 1 --steps 1 \
            ${STEPS:+--pretrain-steps $STEPS} -o judge.safetensors
        decoders ../images/train ../images/heldout "${STEPS:-1500}"
        judged recipe ../rae.safetensors
    )
fi
python "$recipes/decoders.py" . $emoji
