"""Comparison of tensors, with bars. No torch, no mmcv."""
