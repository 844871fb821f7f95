#!/usr/bin/env bash
# Evaluate with PyTorch on NPROC processes: tools/dist_test_pth.sh CONFIG CHECKPOINT NPROC [--eval bbox ...]
# More machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as OpenMMLab documents them.
exec bash "$(dirname "$0")/dist_run.sh" --torch "$@"
