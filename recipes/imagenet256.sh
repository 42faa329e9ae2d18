#!/usr/bin/env bash
# The chain on ImageNet at 256 x 256, at the settings of the MF-RAE paper, on all GPUs of a node.
#
#   recipes/imagenet256.sh IMAGES REFERENCE [OUT]
#
# IMAGES: the training images, a folder with one subfolder per class, or shards. REFERENCE: the images or the .npz that
# FID is measured against. Disk: latents 1.0 TB (with mirror images, float16), trajectories 335 GB.
# An interrupted command goes on when it is run again.
# TRAIN holds options of the training commands; the paper's float32 is TRAIN="--precision float32".
set -euo pipefail

images=$(realpath "${1:?folder or shards of the training images}")
reference=$(realpath "${2:?images or .npz to measure against}")
out=${3:-runs/imagenet256}
preset=${PRESET:-imagenet256}
trajectories=${TRAJECTORIES:-50000}
run=(accelerate launch -m mfkit)
read -ra train <<<"${TRAIN:---precision tf32 --compile}"

mkdir -p "$out"
cd "$out"

[ -e rae.safetensors ] || "${run[@]}" train-rae "$images" --preset "$preset" "${train[@]}" \
    --encoder vit_base_patch14_reg4_dinov2.lvd142m -o rae.safetensors
[ -e latents/index.json ] || "${run[@]}" encode "$images" --rae rae.safetensors -o latents --mirror --workers 16
[ -e teacher.safetensors ] || "${run[@]}" train-teacher latents --model XL "${train[@]}" -o teacher.safetensors
[ -e traj/index.json ] || "${run[@]}" trajectories --teacher teacher.safetensors -n "$trajectories" -o traj
[ -e cmt.safetensors ] || "${run[@]}" midtrain traj --teacher teacher.safetensors "${train[@]}" -o cmt.safetensors
[ -e mfd.safetensors ] || "${run[@]}" distill --teacher teacher.safetensors --init cmt.safetensors "${train[@]}" \
    -o mfd.safetensors
student=mfd.safetensors
if [ "${BOOTSTRAP:-no}" = yes ]; then
    [ -e mft.safetensors ] || "${run[@]}" bootstrap --init mfd.safetensors "${train[@]}" -o mft.safetensors
    student=mft.safetensors
fi
[ -e samples.npz ] || "${run[@]}" sample "$student" -n 50000 --nfe 1 -o samples.npz --grid grid.png
mfkit fid samples.npz --reference "$reference" | tee fid.json
mfkit flops "$student" --json | tee flops.json
mfkit plot ./*.log.jsonl -o curves.png --overwrite
