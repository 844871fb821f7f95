"""Sizes in the forms that both exporters keep dynamic: TorchScript traces tensors, torch.export symbols."""

import torch


def length(size: torch.Tensor | int) -> torch.Tensor:
    """Return an entry of a tensor's shape, which an exporter may trace, as a () int64 tensor."""
    if isinstance(size, torch.Tensor):
        return torch.as_tensor(size)  # a trace of TorchScript gets a Cast of no effect
    return torch.scalar_tensor(size, dtype=torch.int64)  # `as_tensor` would freeze a torch.SymInt


def hw(maps: torch.Tensor) -> torch.Tensor:
    """Return the height and width (2,) int64 of (B, C, H, W)."""
    return torch.stack([length(size) for size in maps.shape[2:]])


def limit(count: int, available: torch.Tensor | int) -> torch.Tensor | int:
    """Return min(count, available), `available` for a negative count; what is traced stays dynamic."""
    if count < 0:
        return available
    if isinstance(available, torch.Tensor):
        return torch.minimum(torch.tensor(count), available)
    return torch.sym_min(count, available)
