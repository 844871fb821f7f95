"""The contract of a graph: tensors, options, precision, metadata. No torch, no mmcv."""
