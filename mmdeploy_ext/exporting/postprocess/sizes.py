"""Sizes in the forms that both exporters keep dynamic: TorchScript traces tensors, torch.export symbols."""

import torch


def length(size: torch.Tensor | int) -> torch.Tensor:
    """Return `size`, an entry of a tensor's shape, as a () int64 tensor that stays dynamic in a trace.

    It is an integer, a symbol of torch.export, or the () tensor that TorchScript traces in its place.
    """
    if isinstance(size, torch.Tensor):
        return torch.as_tensor(size)  # a trace of TorchScript gets a Cast of no effect
    return torch.scalar_tensor(size, dtype=torch.int64)  # `as_tensor` would freeze a torch.SymInt


def hw(maps: torch.Tensor) -> torch.Tensor:
    """Return the height and width (2,) int64 of `maps` (B, C, H, W), which stay dynamic in a trace."""
    return torch.stack([length(size) for size in maps.shape[2:]])


def limit(count: int, available: torch.Tensor | int) -> torch.Tensor | int:
    """Return min(count, available), or `available` for a negative count, which is no limit.

    `available` is an integer, a symbol or a () tensor, as in `length`; the result is of its kind.
    """
    if count < 0:
        return available
    if isinstance(available, torch.Tensor):
        return torch.minimum(torch.tensor(count), available)
    return torch.sym_min(count, available)
