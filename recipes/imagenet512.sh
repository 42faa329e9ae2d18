#!/usr/bin/env bash
# The chain on ImageNet at 512 x 512: recipes/imagenet256.sh with the files and settings of that size. Of the paper's
# chain, distillation takes 20K and bootstrapping 10K steps; for drifting no figures are published, so those of 256 are
# taken.
#
#   recipes/imagenet512.sh IMAGES REFERENCE [OUT]
#
# REFERENCE: VIRTUAL_imagenet512.npz. Disk: latents 4.0 TB (with mirror images, float16), trajectories 335 GB.
set -euo pipefail

export PRESET=imagenet512 BOOTSTRAP=yes TRAJECTORIES=${TRAJECTORIES:-12500}
export DECODER=${DECODER:-decoders/dinov2/wReg_base/ViTXL_n08_i512/model.pt}
export STATS=${STATS:-stats/dinov2/wReg_base/imagenet1k_512/stat.pt}
export TEACHER=${TEACHER:-DiTs/Dinov2/wReg_base/ImageNet512/DiTDH-XL_ep400/stage2_model.pt}
exec "$(dirname "${BASH_SOURCE[0]}")/imagenet256.sh" "${1:-}" "${2:-}" "${3:-runs/imagenet512}"
