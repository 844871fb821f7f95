#!/usr/bin/env bash
# Evaluate the exported file on NPROC processes, with ONNX Runtime unless the config names another engine of files:
# tools/dist_test_onnx.sh CONFIG CHECKPOINT NPROC [--eval bbox ...] [--onnx FILE]
# More machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as OpenMMLab documents them.
exec bash "$(dirname "$0")/dist_run.sh" --onnx "$@"
