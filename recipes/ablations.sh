#!/usr/bin/env bash
# Do the paper's claims hold on the digits? Seven questions, each on three seeds; the eighth is recipes/objectives.sh.
#
#   recipes/ablations.sh [OUT]            default: runs/objectives, whose runs of digits.sh are taken
#
# SEEDS: "0 1 2". Run it again after an interruption: what is finished is kept.
# OUT/ablations.md and OUT/ablation-*.png are what recipes/README.md shows.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/objectives}
read -ra seeds <<<"${SEEDS:-0 1 2}"
steps=200

# distilled NAME OPTION...: a short distillation, by default from the mid-trained student.
distilled() {
    local name=$1
    shift
    make "$name.safetensors" mfkit distill --teacher ../teacher.safetensors --init ../cmt.safetensors \
        --latents ../latents --steps $steps --log-every 10 --seed "$seed" -o "$name.safetensors" "$@"
}

# 1: from random weights, from the teacher's, from the mid-trained student.
starts() {
    make random.safetensors mfkit train-mean-flow ../latents --steps 1 --learning-rate 0 --seed "$seed" \
        -o random.safetensors
    distilled start-random --init random.safetensors --steps $((2 * steps))
    distilled start-teacher --init ../teacher.safetensors --steps $((2 * steps))
    distilled start-cmt --steps $((2 * steps))
}

# 2: MFD, MFT, and one after the other, by the strength of the teacher.
teachers() {
    local share teacher init
    for share in 8 2 1; do
        teacher=teacher-$share
        make $teacher.safetensors mfkit train-teacher ../latents --steps $((1650 / share)) --seed "$seed" \
            -o $teacher.safetensors
        make traj-$share/index.json mfkit trajectories --teacher $teacher.safetensors -n 2000 --seed "$seed" \
            -o traj-$share
        make cmt-$share.safetensors mfkit midtrain traj-$share --teacher $teacher.safetensors --seed "$seed" \
            -o cmt-$share.safetensors
        init="--init cmt-$share.safetensors"
        make mfd-$share.safetensors mfkit distill --teacher $teacher.safetensors $init --steps $steps --seed "$seed" \
            -o mfd-$share.safetensors
        make mft-$share.safetensors mfkit bootstrap $init --latents ../latents --learning-rate 1e-4 \
            --final-learning-rate 2e-6 --steps $steps --seed "$seed" -o mft-$share.safetensors
        make half-$share.safetensors mfkit distill --teacher $teacher.safetensors $init --steps $((steps / 2)) \
            --seed "$seed" -o half-$share.safetensors
        make mfd-mft-$share.safetensors mfkit bootstrap --init half-$share.safetensors --latents ../latents \
            --learning-rate 1e-4 --final-learning-rate 2e-6 --steps $((steps / 2)) --seed "$seed" \
            -o mfd-mft-$share.safetensors
    done
}

# 3: times of the states as they are, and without the shift, as the released code labels them.
times() {
    make traj-unshifted/00000.tar python "$recipes/ablations.py" --unshift ../traj traj-unshifted
    make times-unshifted.safetensors mfkit midtrain traj-unshifted --teacher ../teacher.safetensors --seed "$seed" \
        -o times-unshifted.safetensors
}

# 4 and 7 need a teacher that knows a velocity without label.
unlabelled() {
    make teacher-d.safetensors mfkit train-teacher ../latents --class-dropout 0.1 --seed "$seed" \
        -o teacher-d.safetensors
    make traj-d/index.json mfkit trajectories --teacher teacher-d.safetensors -n 2000 --seed "$seed" -o traj-d
    make cmt-d.safetensors mfkit midtrain traj-d --teacher teacher-d.safetensors --class-dropout 0.1 --seed "$seed" \
        -o cmt-d.safetensors
}

# 4: labels dropped once a row, or anew in each evaluation of du/dt.
drops() {
    local common="--teacher teacher-d.safetensors --init cmt-d.safetensors"
    distilled drops-once $common --class-dropout 0.1
    make drops-separate.safetensors python "$recipes/ablations.py" --separate-drops distill $common \
        --latents ../latents --steps $steps --log-every 10 --seed "$seed" -o drops-separate.safetensors
}

# 5: how du/dt is taken.
derivatives() {
    local step
    distilled derivative-jvp --derivative jvp
    for step in 1e-4 1e-3 5e-3 1e-2 0.1; do
        distilled derivative-$step --derivative central --finite-difference-step $step
    done
}

# 6: the weight of a row; and its cure, an eps of the size of a row, 0.01 of its numbers.
weights() {
    local p
    for p in 0 0.5 1; do distilled weight-$p --norm-p $p; done
    distilled weight-1-large-eps --norm-p 1 --norm-eps 5.12
}

# 7: guidance of the teacher, on it and on the student of its trajectories.
guidance() {
    local name options
    for name in 1.5 2.5 2.5-inside; do
        options="--guidance ${name%-inside}"
        [ $name = "${name%-inside}" ] || options+=" --guidance-interval 0.1 0.9"
        make traj-guided-$name/index.json mfkit trajectories --teacher teacher-d.safetensors -n 2000 --seed "$seed" \
            -o traj-guided-$name $options
        make guided-$name.safetensors mfkit midtrain traj-guided-$name --teacher teacher-d.safetensors \
            --class-dropout 0.1 --seed "$seed" -o guided-$name.safetensors
    done
}

lane_a() {
    unlabelled
    drops
    guidance
    derivatives
}
lane_b() {
    teachers
    starts
    times
    weights
}

mkdir -p "$out"
cd "$out"
for seed in "${seeds[@]}"; do
    [ -e "seed-$seed/report.json" ] || "$recipes/digits.sh" "seed-$seed" "$seed" >/dev/null
    mkdir -p "seed-$seed/ablations"
    cd "seed-$seed/ablations"
    side_by_side lane_a lane_b
    cd ../..
done
python "$recipes/ablations.py" .
