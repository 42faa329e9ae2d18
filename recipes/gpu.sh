#!/usr/bin/env bash
# Checks and measures an NVIDIA GPU: the tests that need one, then each stage at XL and 256 tokens, as one table.
#
#   recipes/gpu.sh [OUT]                  default: runs/gpu
#
# Nine minutes at the most: the tests have three of them, the stages the rest. Without a GPU it says so and ends.
# BENCH holds other options of `mfkit bench`; the default is: --precision bf16 --compile --batch-size 32.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-runs/gpu}
read -ra bench <<<"${BENCH:---precision bf16 --compile --batch-size 32}"
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    { echo "gpu.sh: skipped, PyTorch sees no NVIDIA GPU here"; exit 0; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$recipes/.."

begin=$SECONDS
timeout 180 python -m pytest -q -m gpu tests | tee "$out/tests.txt" || true
for stage in distill train-teacher bootstrap midtrain sample encode trajectories loader train-mean-flow; do
    left=$((530 - SECONDS + begin))
    options=("${bench[@]}")
    case $stage in encode | trajectories | sample | loader)
        options=("${bench[@]/--compile/}") ;;
    esac
    [ "$left" -gt 20 ] || { echo "gpu.sh: no time left for $stage" >&2; continue; }
    timeout "$left" python -m mfkit bench "$stage" ${options[@]} --json >"$out/$stage.json" ||
        { rm -f "$out/$stage.json"; echo "gpu.sh: $stage was not measured" >&2; }
done
python "$recipes/bench_table.py" "$out"/*.json | tee "$out/table.md"
