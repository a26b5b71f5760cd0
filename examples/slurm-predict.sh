#!/bin/bash
#SBATCH --job-name=predict
#SBATCH --array=1-16
#SBATCH --cpus-per-task=2
# Predict in sixteen shares: sbatch examples/slurm-predict.sh photos runs/photos
# From the project's folder. All machines must see it, and the photos. In the end `cat part-*.csv` is the CSV of all.
PATH=$PWD/.venv/bin:$PATH
k=$SLURM_ARRAY_TASK_ID
exec python predict.py "$1" --model "$2" --format csv --shard "$k/$SLURM_ARRAY_TASK_COUNT" > "part-$(printf %02d "$k").csv"
