#!/usr/bin/env bash
# The chain of recipes/digits.sh at a few steps, its piped form, and a project that mfkit new began: shows that everything
# fits, not that it is good.
#
#   recipes/smoke.sh [OUT]                default: a temporary folder, removed at the end
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -gt 0 ]; then
    out=$1
else
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi

STEPS=5 TRAJECTORIES=128 SAMPLES=200 "$recipes/digits.sh" "$out" >/dev/null
cd "$out"
mfkit trajectories --teacher teacher.safetensors -n 128 -o - |
    mfkit midtrain - --teacher teacher.safetensors --steps 2 -o piped.safetensors --overwrite
mfkit new project digits:train
sed -i 's/^steps = .*/steps = 5/; s/^count = .*/count = 100/; s/^preset = /pretrain-steps = 5\n&/' project/config.toml
project/run.sh >/dev/null
for artifact in rae.safetensors latents/index.json teacher.safetensors cmt.safetensors mfd.safetensors \
    mft.safetensors drift.safetensors samples/drift-1/index.json fid.json curves.png grid.png report.json \
    project/drift.png project/fid.json project/report.html project/pipeline/model_index.json; do
    [ -s "$artifact" ] || { echo "missing: $artifact" >&2; exit 1; }
done
echo "smoke: all artifacts are there"
