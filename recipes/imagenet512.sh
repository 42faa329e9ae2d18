#!/usr/bin/env bash
# The chain on ImageNet at 512 x 512: that of recipes/imagenet256.sh, with distillation 20K and bootstrapping 10K steps.
#
#   recipes/imagenet512.sh IMAGES REFERENCE [OUT]
#
# Disk: latents 4.0 TB (with mirror images, float16), trajectories 335 GB.
set -euo pipefail

PRESET=imagenet512 BOOTSTRAP=yes TRAJECTORIES=12500 exec "$(dirname "${BASH_SOURCE[0]}")/imagenet256.sh" \
    "${1:-}" "${2:-}" "${3:-runs/imagenet512}"
