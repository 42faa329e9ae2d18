#!/usr/bin/env bash
# Which objective? From the same mid-trained student of the digits, each for the same time, on three seeds.
#
#   recipes/objectives.sh [OUT] [PART...]     default: runs/objectives distributions
#
# distributions: mean flow, drifting and Fréchet; flow_maps: the siblings of mean flow, longer mid-training, reflow.
# BUDGET: seconds of training for each (120) on half of the cores, start-up aside; two are trained at a time. SEEDS:
# "0 1 2". The steps that fit are measured once, on the first seed, and written down. Run it again after an interruption:
# what is finished is kept. Nothing else should run.
# OUT/table.md and OUT/objectives.png are what recipes/README.md shows.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/objectives}
shift $(($# > 0 ? 1 : 0))
budget=${BUDGET:-120}
read -ra seeds <<<"${SEEDS:-0 1 2}"

# train NAME SECONDS COMMAND...: a training of so many seconds. The steps that fit are told by twenty of them, on the
# first seed.
train() {
    local name=$1 seconds=$2 steps=../steps-$1 probe=probe-$1
    shift 2
    [ ! -e "$name.safetensors" ] || return 0
    if [ ! -e "$steps" ]; then
        "$@" --steps 20 --dry-run -o "$probe.safetensors" >"$probe.json"
        "$@" --steps 20 --log-every 10 --overwrite --restart -q -o "$probe.safetensors" >/dev/null
        write "$steps" python "$recipes/objectives.py" --steps "$seconds" "$probe"
        rm -f "$probe".*
    fi
    make "$name.safetensors" "$@" --seed "$seed" --steps "$(cat "$steps")" -o "$name.safetensors"
}

mean_flow_and_frechet() {
    train mean-flow-teacher "$budget" mfkit distill --teacher teacher.safetensors --init cmt.safetensors
    by_data mean-flow-data mean-flow
    train frechet-mean-token "$budget" mfkit bootstrap --init cmt.safetensors --objective frechet --space mean-token
    train frechet-latent "$budget" mfkit bootstrap --init cmt.safetensors --objective frechet --space latent
    train frechet-rae "$budget" mfkit bootstrap --init cmt.safetensors --objective frechet --space rae \
        --reference digits:train
    train half-drifting $((budget / 2)) mfkit bootstrap --init cmt.safetensors --objective drifting
    train drifting-then-frechet $((budget / 2)) mfkit bootstrap --init half-drifting.safetensors --objective frechet \
        --space mean-token
}

drifting() {
    local field view
    for field in two-sided token sinkhorn; do
        for view in token latent; do
            train "drifting-$field-$view" "$budget" mfkit bootstrap --init cmt.safetensors --objective drifting \
                --field "$field" --view "$view"
        done
    done
}

mid_training() {
    train cmt-longer "$budget" mfkit midtrain traj --teacher teacher.safetensors
    train ctm "$budget" mfkit midtrain traj --teacher teacher.safetensors --objective ctm
}

straight() {
    train reflow "$budget" mfkit train-teacher traj --objective reflow --init teacher.safetensors
}

by_teacher() {
    local objective
    for objective in "$@"; do
        train "$objective" "$budget" mfkit distill --teacher teacher.safetensors --init cmt.safetensors \
            --objective "$objective"
    done
}

# by_data NAME OBJECTIVE: at the rate of a distillation; the preset's is for a student that has had one.
by_data() {
    train "$1" "$budget" mfkit bootstrap --init cmt.safetensors --objective "$2" --learning-rate 1e-4 \
        --final-learning-rate 5e-6
}

distributions() { side_by_side mean_flow_and_frechet drifting; }

some_flow_maps() { by_teacher imf hybrid scm facm ayf tim temf modular consistency self-split psd; }

more_flow_maps() {
    by_teacher soflow alphaflow emf shortcut arrival freeflow lmd
    by_data ect ect
    by_data lsd lsd
    by_data tvm tvm
    by_data imm imm
}

flow_maps() {
    side_by_side some_flow_maps more_flow_maps
    side_by_side mid_training straight
}

[ $# -gt 0 ] || set -- distributions
for part; do
    [[ $part == distributions || $part == flow_maps ]] || { echo "no part $part: distributions or flow_maps" >&2; exit 2; }
done

mkdir -p "$out"
cd "$out"
for seed in "${seeds[@]}"; do
    [ -e "seed-$seed/report.json" ] || "$recipes/digits.sh" "seed-$seed" "$seed" >/dev/null
    cd "seed-$seed"
    for part; do "$part"; done
    cd ..
done
python "$recipes/objectives.py" .
