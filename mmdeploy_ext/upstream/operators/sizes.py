"""Sizes of tensors that stay dynamic in a trace."""

import torch


def length(size: torch.Tensor | int) -> torch.Tensor:
    """Return `size` as a () int64 tensor that stays dynamic in a trace."""
    if isinstance(size, torch.Tensor):
        return torch.as_tensor(size)  # a trace of TorchScript gets a Cast of no effect
    return torch.scalar_tensor(size, dtype=torch.int64)  # `as_tensor` would freeze a torch.SymInt


def hw(maps: torch.Tensor) -> torch.Tensor:
    """Return the height and width (2,) int64 of (B, C, H, W), dynamic in a trace."""
    return torch.stack([length(size) for size in maps.shape[2:]])
