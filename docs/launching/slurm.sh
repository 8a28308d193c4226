#!/usr/bin/env bash
# Trains on four nodes of eight GPUs: sbatch slurm.sh
#SBATCH --job-name=crossattn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --requeue
# Two minutes before the time is over the run is asked to save, and the job is put into the queue again.
#SBATCH --signal=B:USR1@120
set -euo pipefail

again() {
  scancel --signal=TERM "$SLURM_JOB_ID.0"
  wait
  scontrol requeue "$SLURM_JOB_ID"
}
trap again USR1

source "$HOME/venv/bin/activate"
srun --kill-on-bad-exit=1 --label crossattn train --multihost \
  --config=crossvit_imagenet:crossvit_small_240 \
  --workdir="$SCRATCH/runs/crossvit" \
  --config.dataset.data_dir="$SCRATCH/tensorflow_datasets" \
  --config.mesh.fsdp=8 &
wait $!
