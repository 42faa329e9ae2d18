#!/usr/bin/env bash
# Which losses make a decoder sharp? New decoders for the digits' latents, on three seeds; all else stays.
#
#   recipes/decoders.sh [OUT]             default: runs/objectives, whose runs of digits.sh are taken
#
# SEEDS: "0 1 2"; STEPS shortens it. Run it again after an interruption: what is finished is kept.
# OUT/decoders.md is what recipes/README.md shows. The judge is the encoder of another seed, which no decoder here has
# seen, and the pixels.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/objectives}
read -ra seeds <<<"${SEEDS:-0 1 2}"

# decoder NAME OPTION...: a new decoder, what it makes of the held-out digits, and of the drifting student's latents.
decoder() {
    local name=$1
    shift
    make "$name.safetensors" mfkit train-rae digits:train --encoder ../rae.safetensors --keep-latents --seed "$seed" \
        ${STEPS:+--steps $STEPS} -o "$name.safetensors" "$@"
    make "$name-held-out.npz" mfkit decode held-out --rae "$name.safetensors" -o "$name-held-out.npz"
    make "$name-drawn.npz" mfkit sample ../drift.safetensors -n 2000 --seed "$((1000 + seed))" \
        --rae "$name.safetensors" -o "$name-drawn.npz"
    write "$name-held-out.json" mfkit fid "$name-held-out.npz" --reference digits:heldout \
        --features "$judge,pixels" --paired psnr,ssim
    write "$name-drawn.json" mfkit fid "$name-drawn.npz" --reference digits:train --features "$judge,pixels"
}

mkdir -p "$out"
cd "$out"
for seed in "${seeds[@]}"; do
    [ -e "seed-$seed/report.json" ] || "$recipes/digits.sh" "seed-$seed" "$seed" >/dev/null
done
for seed in "${seeds[@]}"; do
    judge=$PWD/seed-$(((seed + 1) % ${#seeds[@]}))/rae.safetensors
    mkdir -p "seed-$seed/decoders"
    cd "seed-$seed/decoders"
    make held-out/index.json mfkit encode digits:heldout --rae ../rae.safetensors -o held-out
    decoder l1
    decoder layers --perceptual encoder
    decoder adversary --discriminator encoder
    decoder both --perceptual encoder --discriminator encoder
    cd ../..
done
python "$recipes/decoders.py" .
