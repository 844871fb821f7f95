#!/usr/bin/env bash
# What dist_test_pth.sh (--torch) and dist_test_onnx.sh (--onnx) share.
set -u
ENGINE=$1
shift
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
    exec "$PYTHON" "$ROOT/tools/test.py" "$CONFIG" "$CHECKPOINT" "$ENGINE" --launcher none "$@"
fi
# torchrun would pin every process to one thread; share the cores instead.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / NPROC > 0 ? $(nproc) / NPROC : 1 ))}
if [ -z "${PORT:-}" ]; then
    PORT=29500
    [ "$NNODES" = 1 ] && PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
# A signal to this script ends torchrun, and with it the ranks. A shell's background process never sees SIGINT, so that
# every signal becomes the one that torchrun passes on.
SIGNAL='' RUN=''
trap 'SIGNAL=INT; kill -TERM "$RUN" 2>/dev/null' INT
trap 'SIGNAL=TERM; kill -TERM "$RUN" 2>/dev/null' TERM
trap 'SIGNAL=HUP; kill -TERM "$RUN" 2>/dev/null' HUP
TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM "$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node_rank "$NODE_RANK" \
    --master_addr "$MASTER_ADDR" --master_port "$PORT" --nproc_per_node "$NPROC" "$ROOT/tools/test.py" "$CONFIG" \
    "$CHECKPOINT" "$ENGINE" --launcher pytorch "$@" &
RUN=$!
[ -z "$SIGNAL" ] || kill -TERM "$RUN"
wait "$RUN"
status=$?
while kill -0 "$RUN" 2>/dev/null; do # a signal has ended the wait, not the run
    wait "$RUN"
    status=$?
done
if [ -n "$SIGNAL" ]; then
    echo "error: the distributed run of $CONFIG was ended by SIG$SIGNAL" >&2
    exit $((128 + $(kill -l "$SIGNAL")))
fi
[ $status -ne 0 ] && echo "error: the distributed run of $CONFIG ended with status $status; the first rank that failed is named above" >&2
exit $status
