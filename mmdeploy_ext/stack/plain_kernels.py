"""Operators of mmcv 1.7.2 that have CUDA kernels alone, as their papers define them, in PyTorch.

CARAFE: https://arxiv.org/abs/1905.02188; deformable pooling of regions: https://arxiv.org/abs/1703.06211 and
https://arxiv.org/abs/1811.11168.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def carafe(
    features: torch.Tensor, masks: torch.Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> torch.Tensor:
    """Enlarge maps: every new cell is a sum of the cells around its old one, weighted by its own kernel.

    Args:
        features: (B, C, h, w).
        masks: (B, groups * kernel_size ** 2, h * scale_factor, w * scale_factor), group by group.
        kernel_size: k, odd; beyond the map there are zeros.
        group_size: of channels that share kernels.
        scale_factor: whole.

    Returns:
        (B, C, h * scale_factor, w * scale_factor).
    """
    channels, (height, width) = features.shape[1], masks.shape[2:]
    padded = functional.pad(features, [kernel_size // 2] * 4)
    padded = functional.interpolate(padded, scale_factor=scale_factor, mode='nearest')
    found = torch.zeros((), dtype=features.dtype, device=features.device)
    for tap in range(kernel_size**2):
        row, column = (scale_factor * place for place in divmod(tap, kernel_size))
        weight = masks[:, tap :: kernel_size**2]
        if group_size > 1:
            weight = weight.repeat_interleave(channels // group_size, dim=1)
        found = found + padded[:, :, row : row + height, column : column + width] * weight
    return found


def bins_of(
    boxes: torch.Tensor, offset: torch.Tensor | None, size: tuple[int, int], scale: float, gamma: float
) -> torch.Tensor:
    """Return the cells of regions as boxes (R * h * w, 4) xyxy, each moved by its offset.

    Args:
        boxes: (R, 4) xyxy, pixels.
        offset: (R, 2, h, w) x before y, in sizes of the region over `gamma`; None moves nothing.
        size: h, w.
        scale: cells of the map per pixel.
        gamma: of the offsets.
    """
    low, high = boxes[:, :2] * scale - 0.5, boxes[:, 2:] * scale - 0.5
    whole = (high - low)[:, None, None]
    cell = whole / boxes.new_tensor([size[1], size[0]])
    rows, columns = (torch.arange(side, device=boxes.device).to(boxes) for side in size)
    place = torch.stack(torch.meshgrid(columns, rows, indexing='xy'), dim=-1)
    start = low[:, None, None] + place * cell
    if offset is not None:
        start = start + offset.permute(0, 2, 3, 1) * gamma * whole
    found = torch.cat([start, start + cell], dim=-1)
    return ((found + 0.5) / scale).reshape(-1, 4)


def deform_roi_pool(
    features: torch.Tensor,
    rois: torch.Tensor,
    offset: torch.Tensor | None,
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> torch.Tensor:
    """Pool regions whose cells are moved: each cell is a region of one cell, aligned.

    Args:
        features: (B, C, H, W).
        rois: (R, 5) index of the image, then xyxy in pixels.
        offset: see `bins_of`.
        output_size: h, w.
        spatial_scale: cells of the map per pixel.
        sampling_ratio: samples of a cell on each axis; 0 takes as many as it has cells of the map.
        gamma: of the offsets.

    Returns:
        (R, C, h, w).
    """
    from mmcv.ops import roi_align
    from torch.nn.modules.utils import _pair

    height, width = _pair(output_size)
    bins = bins_of(rois[:, 1:], offset, (height, width), spatial_scale, gamma)
    images = rois[:, :1].repeat_interleave(height * width, dim=0)
    moved = torch.cat([images, bins], dim=1)
    found = roi_align(features, moved, (1, 1), spatial_scale, sampling_ratio, 'avg', True)
    return found.reshape(len(rois), height, width, features.shape[1]).permute(0, 3, 1, 2).contiguous()
