#!/usr/bin/env bash
# Runs a command of pmsplat as a SLURM job, on one node or several:
#     sbatch scripts/slurm.sh train +experiment=re10k_small dataset.root=/data/re10k
#     sbatch --nodes=2 scripts/slurm.sh evaluate +experiment=re10k_small --model outputs/re10k_small
#     sbatch --array=1-16 --gpus-per-node=0 scripts/slurm.sh data convert /raw /data/mine/test
#     sbatch --array=1-16 --gpus-per-node=1 scripts/slurm.sh teacher cache +experiment=re10k_small_pm
#     sbatch --array=1-16 --gpus-per-node=1 scripts/slurm.sh evaluate +experiment=re10k_small
# train and evaluate run on all GPUs of all nodes; a training that is stopped before its end is
# queued again and goes on. Each job of an array does its part of other work than training; after
# that of `evaluate`, the same without an array joins the parts. Options of sbatch before the script
# replace those below.
#SBATCH --job-name=pmsplat
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

NODES=${SLURM_NNODES:-1}
GPUS=${SLURM_GPUS_ON_NODE:-1}
if [ -n "${SLURM_ARRAY_TASK_COUNT:-}" ]; then
    if [ "${1:-}" = train ]; then
        echo "slurm.sh: train in an array, whose jobs would all do the same; use --nodes" >&2
        exit 2
    fi
    set -- "$@" --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$SLURM_ARRAY_TASK_COUNT"
fi
case "${1:-}" in
train) set -- "$@" trainer.resume=auto trainer.nodes="$NODES" trainer.devices="$GPUS" ;;
evaluate) ;;
*) exec srun pmsplat "$@" ;;
esac
VERB=$1 STOPPED='' CODE=0
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" -m pmsplat "$@" &
STEP=$!
trap 'STOPPED=1; kill -TERM "$STEP"' TERM # five minutes before the end, or before others' jobs
while :; do
    wait "$STEP" && CODE=0 || CODE=$?
    kill -0 "$STEP" 2>/dev/null || break # else a signal ended `wait`
done
if [ -n "$STOPPED" ] && [ "$VERB" = train ] && [ "$CODE" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$CODE"
