#!/usr/bin/env bash
# The chain on a folder of images as you may have one: 1,500 crops of scikit-learn's two photographs, in two classes.
#
#   recipes/photos.sh [OUT] [SIDE]        default: runs/photos, crops of 48 pixels
#
# Put your own folder in place of OUT/photos: nothing else knows what is in it. STEPS shortens every training.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/photos}
side=${2:-48}
short=${STEPS:+--steps $STEPS}

mkdir -p "$out"
cd "$out"

make photos python - "$side" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

side, random = int(sys.argv[1]), np.random.default_rng(0)
for name in ("china", "flower"):
    photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
    folder = Path("photos") / name
    folder.mkdir(parents=True)
    for index in range(750):
        left, top = (int(random.integers(0, size - 128)) for size in photo.size)
        photo.crop((left, top, left + 128, top + 128)).resize((side, side)).save(folder / f"{index:03d}.png")
PYTHON

make rae.safetensors mfkit train-rae photos --encoder tiny -o rae.safetensors $short ${STEPS:+--pretrain-steps $STEPS}
make latents/index.json mfkit encode photos --rae rae.safetensors -o latents --mirror
make teacher.safetensors mfkit train-teacher latents -o teacher.safetensors $short
make traj/index.json mfkit trajectories --teacher teacher.safetensors -n "${TRAJECTORIES:-8000}" -o traj
make cmt.safetensors mfkit midtrain traj --teacher teacher.safetensors -o cmt.safetensors $short
make mfd.safetensors mfkit distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors $short
make mft.safetensors mfkit bootstrap --init mfd.safetensors -o mft.safetensors $short
make samples/index.json mfkit sample mft.safetensors -n 1500 -o samples --grid grid.png
make teacher-samples/index.json mfkit sample teacher.safetensors -n 1500 -o teacher-samples --grid teacher.png
write fid.json mfkit fid samples --reference photos --features rae.safetensors
write fid-teacher.json mfkit fid teacher-samples --reference photos --features rae.safetensors
grep -h frechet_distance fid-teacher.json fid.json
