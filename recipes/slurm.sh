#!/usr/bin/env bash
# One command of mfkit on several nodes under Slurm, one task for each GPU.
#
#   sbatch --nodes 4 recipes/slurm.sh train-teacher latents -o teacher.safetensors
#
# Five minutes before its time is up the job gets SIGUSR1: a training finishes its step, saves, and the job is queued
# again, to go on from there. So it is after a node was lost, from the last checkpoint.
#SBATCH --job-name=mfkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE="$SLURM_NTASKS"

code=0
# shellcheck disable=SC2016  # these are variables of the tasks
srun --kill-on-bad-exit=1 bash -c '
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"
    exec mfkit "$@"
' mfkit "$@" || code=$?
if [ "$code" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
