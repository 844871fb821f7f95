#!/usr/bin/env bash
# Evaluate with an ONNX engine on NPROC processes: tools/dist_test_onnx.sh CONFIG_onnx.py CHECKPOINT NPROC [--eval bbox ...]
# More machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as OpenMMLab documents them.
exec bash "$(dirname "$0")/dist_run.sh" "$@"
