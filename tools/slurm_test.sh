#!/usr/bin/env bash
# Evaluate on Slurm: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS (default 8), GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS as OpenMMLab documents them.
set -eu
if [ $# -lt 4 ]; then
    echo "error: usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]; got: $*" >&2
    exit 2
fi
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 CHECKPOINT=$4
shift 4
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# One port for all ranks: mmcv would let each of them look for a free one.
export MASTER_PORT=${MASTER_PORT:-$((20000 + RANDOM % 20000))}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ -x "$ROOT/.venv/bin/python" ] && [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && PYTHON="$ROOT/.venv/bin/python"
fi
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
# shellcheck disable=SC2086  # SRUN_ARGS is a list of options
exec srun -p "$PARTITION" --job-name="$JOB_NAME" --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 --quit-on-interrupt \
    ${SRUN_ARGS:-} \
    "$PYTHON" -u "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher=slurm "$@"
