#!/usr/bin/env bash
# The chain on ImageNet at 256 x 256 on all GPUs of a node, from the released RAE and teacher to one-step images and FID.
#
#   recipes/imagenet256.sh IMAGES REFERENCE [OUT]
#
# IMAGES: the training images, a folder with one subfolder per class, or shards. REFERENCE: ADM's reference batch,
# VIRTUAL_imagenet256_labeled.npz, that FID is measured against as the papers do it: 50,000 images, classes alike, its
# own resize. Disk: latents 1.0 TB (with mirror images, float16), trajectories 335 GB.
# An interrupted command goes on when it is run again.
#
# CHAIN=drifting    trajectories, midtrain, drifting (default): 1.35 GPU-days by `mfkit plan`
# CHAIN=paper       trajectories, midtrain, distill, bootstrap where BOOTSTRAP=yes, as in the MF-RAE paper
# RELEASED=FOLDER   the released files, in the layout of their hub; `no` trains decoder and teacher here, the
#                   decoder on random crops, with LPIPS and a discriminator, whose weights (VGG's, DINO's) are fetched.
# TRAIN             options of the training commands; the paper's float32 is TRAIN="--precision float32"
# MICRO_BATCH       rows with gradients at a time in drifting
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
images=$(realpath "${1:?folder or shards of the training images}")
reference=$(realpath "${2:?ADM reference batch, or images, to measure against}")
out=${3:-runs/imagenet256}
preset=${PRESET:-imagenet256}
trajectories=${TRAJECTORIES:-50000}
released=${RELEASED:-hf://nyu-visionx/RAE-collections}
decoder=${DECODER:-decoders/dinov2/wReg_base/ViTXL_n08/model.pt}
stats=${STATS:-stats/dinov2/wReg_base/imagenet1k/stat.pt}
teacher=${TEACHER:-DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt}
encoder=vit_base_patch14_reg4_dinov2.lvd142m
chain=${CHAIN:-drifting}
run=(accelerate launch -m mfkit)
read -ra train <<<"${TRAIN:---precision tf32 --compile}"
case $chain in drifting | paper) ;; *) echo "CHAIN=$chain: give drifting or paper" >&2 && exit 2 ;; esac
case $released in no | hf://*) ;; *) released=$(realpath "$released") ;; esac

mkdir -p "$out"
cd "$out"

if [ "$released" = no ]; then
    make rae.safetensors "${run[@]}" train-rae "$images" --preset "$preset" "${train[@]}" --encoder "$encoder" \
        -o rae.safetensors
else
    make rae.safetensors mfkit import "$released/$decoder" --stats "$released/$stats" --encoder "$encoder" \
        --preset "$preset" -o rae.safetensors
fi
make latents/index.json "${run[@]}" encode "$images" --rae rae.safetensors -o latents --mirror --workers 16
if [ "$released" = no ]; then
    make teacher.safetensors "${run[@]}" train-teacher latents --model XL "${train[@]}" -o teacher.safetensors
else
    make teacher.safetensors mfkit import "$released/$teacher" --preset "$preset" --rae rae.safetensors \
        -o teacher.safetensors
fi
make traj/index.json "${run[@]}" trajectories --teacher teacher.safetensors -n "$trajectories" -o traj
make cmt.safetensors "${run[@]}" midtrain traj --teacher teacher.safetensors "${train[@]}" -o cmt.safetensors

if [ "$chain" = drifting ]; then
    student=drift
    make drift.safetensors "${run[@]}" bootstrap --init cmt.safetensors --latents latents --objective drifting \
        --micro-batch "${MICRO_BATCH:-64}" "${train[@]}" -o drift.safetensors
else
    student=mfd
    make mfd.safetensors "${run[@]}" distill --teacher teacher.safetensors --init cmt.safetensors --latents latents \
        "${train[@]}" -o mfd.safetensors
    if [ "${BOOTSTRAP:-no}" = yes ]; then
        student=mft
        make mft.safetensors "${run[@]}" bootstrap --init mfd.safetensors --latents latents "${train[@]}" \
            -o mft.safetensors
    fi
fi

make "$student.npz" "${run[@]}" sample "$student.safetensors" -n 50000 --nfe 1 --labels equal -o "$student.npz" \
    --grid "$student.png"
write "$student-fid.json" mfkit fid "$student.npz" --reference "$reference" \
    --metrics sfid,is,precision-recall
write plan.txt mfkit plan --preset "$preset"
write flops.json mfkit flops "$student.safetensors" --json
mfkit plot ./*.log.jsonl -o curves.png --overwrite
cat "$student-fid.json" plan.txt
