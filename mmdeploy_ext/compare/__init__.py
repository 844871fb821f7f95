"""Tensors beside tensors, with bars. No torch, no mmcv."""
