#!/usr/bin/env bash
# Do the paper's claims hold on the digits? Seven questions, each on three seeds; the eighth is recipes/objectives.sh.
#
#   recipes/ablations.sh [OUT] [QUESTION...]   default: runs/objectives, whose runs of digits.sh are taken; all of them
#
# Questions: start, teachers, times, drops, derivative, weight, guidance. SEEDS: "0 1 2". EMOJI: a run of emoji.sh, for
# guidance there too. Run it again after an interruption: what is finished is kept. STEPS, TRAJECTORIES shorten it.
# OUT/ablations.md and OUT/ablation-*.png are what recipes/README.md shows.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$recipes/steps.sh"
out=${1:-runs/objectives}
shift $(($# > 0 ? 1 : 0))
all=(start teachers times drops derivative weight guidance)
questions=("${@:-${all[@]}}")
for question in "${questions[@]}"; do
    [[ " ${all[*]} " == *" $question "* ]] || { echo "no question $question; there are ${all[*]}" >&2; exit 2; }
done
read -ra seeds <<<"${SEEDS:-0 1 2}"
steps=${STEPS:-200}
short=${STEPS:+--steps $STEPS}

# distilled NAME OPTION...: a short distillation, by default from the mid-trained student.
distilled() {
    local name=$1
    shift
    make "$name.safetensors" mfkit distill --teacher ../teacher.safetensors --init ../cmt.safetensors \
        --latents ../latents --steps $steps --log-every 10 --seed "$seed" -o "$name.safetensors" "$@"
}

# 1: from random weights, from the teacher's, from the mid-trained student.
start() {
    make random.safetensors mfkit train-mean-flow ../latents --steps 1 --learning-rate 0 --seed "$seed" \
        -o random.safetensors
    distilled start-random --init random.safetensors --steps $((2 * steps))
    distilled start-teacher --init ../teacher.safetensors --steps $((2 * steps))
    distilled start-cmt --steps $((2 * steps))
}

# solved NAME TEACHER OPTION...: TEACHER's trajectories by these options as traj-NAME, their ends as images.
solved() {
    local name=$1 teacher=$2
    shift 2
    make "traj-$name/index.json" mfkit trajectories --teacher "$teacher" -n "${TRAJECTORIES:-2000}" --seed "$seed" \
        -o "traj-$name" "$@"
    make "ends-$name.npz" mfkit decode "traj-$name" -o "ends-$name.npz"
}

# midtrained NAME TEACHER DROPOUT OPTION...: the same, and the student of them as cmt-NAME.
midtrained() {
    local name=$1 teacher=$2 dropout=$3
    shift 3
    solved "$name" "$teacher" "$@"
    make "cmt-$name.safetensors" mfkit midtrain "traj-$name" --teacher "$teacher" --seed "$seed" $short \
        --class-dropout "$dropout" -o "cmt-$name.safetensors"
}

# 2: MFD, MFT, and one after the other, by the strength of the teacher.
teachers() {
    local share teacher cmt
    for share in 8 2 1; do
        teacher=../teacher.safetensors cmt=../cmt.safetensors
        if [ $share != 1 ]; then
            teacher=teacher-$share.safetensors cmt=cmt-$share.safetensors
            make $teacher mfkit train-teacher ../latents --steps $((${STEPS:-1650} / share + 1)) --seed "$seed" \
                -o $teacher
            midtrained $share $teacher 0
        else
            make ends-1.npz mfkit decode ../traj -o ends-1.npz
        fi
        distilled mfd-$share --teacher $teacher --init $cmt
        bootstrapped mft-$share $cmt $steps
        distilled half-$share --teacher $teacher --init $cmt --steps $((steps / 2))
        bootstrapped mfd-mft-$share half-$share.safetensors $((steps / 2))
    done
}

# bootstrapped NAME INIT STEPS: at a rate for a start that no distillation has gone before.
bootstrapped() {
    make "$1.safetensors" mfkit bootstrap --init "$2" --latents ../latents --learning-rate 1e-4 \
        --final-learning-rate 2e-6 --steps "$3" --seed "$seed" -o "$1.safetensors"
}

# 3: times of the states as they are, and without the shift, as the released code labels them.
times() {
    make traj-unshifted/00000.tar python "$recipes/ablations.py" --unshift ../traj traj-unshifted
    make times-unshifted.safetensors mfkit midtrain traj-unshifted --teacher ../teacher.safetensors --seed "$seed" \
        $short -o times-unshifted.safetensors
}

# What 4 and 7 need: a teacher that knows a velocity without label.
unlabelled() {
    make teacher-d.safetensors mfkit train-teacher ../latents --class-dropout 0.1 --seed "$seed" $short \
        -o teacher-d.safetensors
    midtrained d teacher-d.safetensors 0.1
}

# 4: labels dropped once a row, or anew in each evaluation of du/dt.
drops() {
    unlabelled
    local common="--teacher teacher-d.safetensors --init cmt-d.safetensors"
    distilled drops-once $common --class-dropout 0.1
    make drops-separate.safetensors python "$recipes/ablations.py" --separate-drops distill $common \
        --latents ../latents --steps $steps --log-every 10 --seed "$seed" -o drops-separate.safetensors
}

# 5: how du/dt is taken.
derivative() {
    local step
    distilled derivative-jvp --derivative jvp
    for step in 1e-4 1e-3 5e-3 1e-2 0.1; do
        distilled derivative-$step --derivative central --finite-difference-step $step
    done
}

# 6: the weight of a row; and its cure, an eps of the size of a row, 0.01 of its numbers.
weight() {
    local p
    for p in 0 0.5 1; do distilled weight-$p --norm-p $p; done
    distilled weight-1-large-eps --norm-p 1 --norm-eps 5.12
    # From the teacher itself, whose rows with r = t are exact: what p = 1 makes of them.
    distilled from-teacher-1e-3 --init ../teacher.safetensors --norm-p 1 --steps 50 --log-every 1
    distilled from-teacher-5.12 --init ../teacher.safetensors --norm-p 1 --norm-eps 5.12 --steps 50 --log-every 1
}

# 7: guidance of the teacher, on it and on the student of its trajectories.
guidance() {
    local name options
    unlabelled
    for name in 1.5 2.5 2.5-inside; do
        options="--guidance ${name%-inside}"
        [ $name = "${name%-inside}" ] || options+=" --guidance-interval 0.1 0.9"
        midtrained guided-$name teacher-d.safetensors 0.1 $options
    done
}

# The same of emoji, whose teacher knows a velocity without label.
guidance_of_emoji() {
    local name options
    for name in 1 2 2-inside 4; do
        options="--guidance ${name%-inside}"
        [ $name = "${name%-inside}" ] || options+=" --guidance-interval 0.1 0.95"
        solved guided-$name ../teacher.safetensors $options
        make cmt-guided-$name.safetensors mfkit midtrain traj-guided-$name --teacher ../teacher.safetensors \
            --steps "${STEPS:-1000}" --seed "$seed" -o cmt-guided-$name.safetensors
    done
}

# answer QUESTION...: those of them that were asked.
answer() {
    local question
    for question; do
        [[ " ${questions[*]} " != *" $question "* ]] || $question
    done
}
lane_a() { answer drops guidance derivative; }
lane_b() { answer teachers start times weight; }

emoji=${EMOJI:+$(realpath "$EMOJI")}
mkdir -p "$out"
cd "$out"
for seed in "${seeds[@]}"; do
    [ -e "seed-$seed/report.json" ] || "$recipes/digits.sh" "seed-$seed" "$seed" >/dev/null
    mkdir -p "seed-$seed/ablations"
    cd "seed-$seed/ablations"
    side_by_side lane_a lane_b
    cd ../..
done
if [ "$emoji" ]; then
    seed=0
    mkdir -p "$emoji/ablations"
    (cd "$emoji/ablations" && guidance_of_emoji)
fi
python "$recipes/ablations.py" . "$emoji" "${questions[@]}"
