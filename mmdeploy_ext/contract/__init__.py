"""What a graph promises: tensors, options, precision, metadata. No torch, no mmcv."""
