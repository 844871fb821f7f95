#!/usr/bin/env bash
# What dist_test_pth.sh and dist_test_onnx.sh share; the engine is the config's backend_config.
set -u
if [ $# -lt 3 ] || ! [[ "$3" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: usage: dist_test_{pth,onnx}.sh CONFIG CHECKPOINT NPROC [options of tools/test.py]; got: $*" >&2
    exit 2
fi
CONFIG=$1 CHECKPOINT=$2 NPROC=$3
shift 3
ROOT=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ -x "$ROOT/.venv/bin/python" ] && [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && PYTHON="$ROOT/.venv/bin/python"
fi
NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
if [ "$NNODES" = 1 ] && [ "$NPROC" = 1 ]; then
    exec "$PYTHON" "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher none "$@"
fi
# torchrun would pin every process to one thread; share the cores instead.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1 ))}
if [ -z "${PORT:-}" ]; then
    PORT=29500
    [ "$NNODES" = 1 ] && PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
"$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" \
    --master_port "$PORT" --nproc_per_node "$NPROC" "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
status=$?
[ $status -ne 0 ] && echo "error: the distributed run of $CONFIG ended with status $status; the first rank that failed is named above" >&2
exit $status
