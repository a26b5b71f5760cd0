#!/bin/bash
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
# Train on four machines: sbatch examples/slurm-train.sh my_images runs/photos --network cnn
# From the project's folder. All machines must see it, the images and the runs. Submitted again, after the time limit for
# example, it goes on from the last checkpoint. If a machine fails, Slurm submits it again.
data=$1 output=$2
shift 2
PATH=$PWD/.venv/bin:$PATH
for _ in 1 2 3; do
  if ls "$output"/*/model.json > /dev/null 2>&1
  then flags=(--resume "$output")
  else flags=(--data-dir "$data" --output "$output" "$@")
  fi
  # If a worker dies, the others exit with 1 by themselves; then all start again.
  srun --kill-on-bad-exit=0 python train.py "${flags[@]}"
  code=$?
  case $code in 0 | 2 | 3 | 130 | 143) break ;; esac  # done; again, it would be the same; told to stop
done
exit "$code"
