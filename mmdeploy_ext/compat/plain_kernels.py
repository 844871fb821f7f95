"""Operators of mmcv 1.7.2 that have CUDA kernels alone, in PyTorch, gradients included.

CARAFE: https://arxiv.org/abs/1905.02188; deformable pooling of regions: https://arxiv.org/abs/1703.06211 and
https://arxiv.org/abs/1811.11168.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Enlarge maps (B, C, h, w): a new cell is a sum of those around its old one, weighted by its own kernel.

    Args:
        features: (B, C, h, w).
        masks: (B, groups * kernel_size ** 2, h * scale_factor, w * scale_factor), group by group.
        kernel_size: odd; beyond the map there are zeros.
        group_size: of channels that share kernels.
        scale_factor: whole.
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


def masked_conv2d(
    features: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """Return the convolution of features (1, C, h, w) where the mask (1, h, w) is, zero elsewhere."""
    if features.shape[0] != 1 or mask.dim() != 3:
        raise ValueError(
            f'masked_conv2d: got features {tuple(features.shape)} and mask {tuple(mask.shape)}; expected '
            f'those of one image, (1, C, h, w) and (1, h, w)'
        )
    everywhere = functional.conv2d(features, weight, bias, stride, padding)
    inside = mask if mask.dtype == torch.bool else mask > 0
    return torch.where(inside[None], everywhere, torch.zeros_like(everywhere))


def bins_of(
    boxes: Tensor, offset: Tensor | None, size: tuple[int, int], scale: float, gamma: float
) -> Tensor:
    """Return the cells of regions (R, 4) as boxes (R * h * w, 4) xyxy, pixels, each moved by its offset.

    Offsets (R, 2, h, w) are x before y, in sizes of the region over `gamma`; None moves nothing. `size` is h,
    w; `scale` cells of the map per pixel.
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
    features: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Return regions (R, C, h, w) whose cells are moved: each cell is a region of one cell, aligned.

    Args:
        features: (B, C, H, W).
        rois: (R, 5) index of the image, then xyxy in pixels.
        offset: see `bins_of`.
        output_size: h, w.
        spatial_scale: cells of the map per pixel.
        sampling_ratio: samples of a cell on each axis; 0 takes as many as it has cells of the map.
        gamma: of the offsets.
    """
    from mmcv.ops import roi_align
    from torch.nn.modules.utils import _pair

    height, width = _pair(output_size)
    bins = bins_of(rois[:, 1:], offset, (height, width), spatial_scale, gamma)
    images = rois[:, :1].repeat_interleave(height * width, dim=0)
    moved = torch.cat([images, bins], dim=1)
    found = roi_align(features, moved, (1, 1), spatial_scale, sampling_ratio, 'avg', True)
    return found.reshape(len(rois), height, width, features.shape[1]).permute(0, 3, 1, 2).contiguous()


def dynamic_scatter(feats: Tensor, coors: Tensor, reduce_type: str = 'max') -> tuple[Tensor, Tensor]:
    """Return features (M, C) and coordinates (M, D) of voxels, in ascending order of coordinates.

    Args:
        feats: (N, C) features of points.
        coors: (N, D) integer voxel of each point; points with a negative one belong to no voxel.
        reduce_type: 'mean', 'sum' or 'max' over the points of a voxel; of equal greatest values the gradient
            goes to the first point.
    """
    inside = (coors >= 0).all(1)
    feats, coors = feats[inside], coors[inside]
    voxels, point_to_voxel, counts = torch.unique(coors, dim=0, return_inverse=True, return_counts=True)
    if reduce_type == 'max':
        return _greatest(feats, point_to_voxel, len(voxels)), voxels
    sums = feats.new_zeros(len(voxels), feats.shape[1]).index_add(0, point_to_voxel, feats)
    return (sums / counts[:, None].to(sums) if reduce_type == 'mean' else sums), voxels


def _greatest(feats: Tensor, point_to_voxel: Tensor, num_voxels: int) -> Tensor:
    index = point_to_voxel[:, None].expand_as(feats)
    values = feats.detach()
    best = values.new_empty(num_voxels, feats.shape[1]).scatter_reduce(
        0, index, values, 'amax', include_self=False
    )
    rows = torch.arange(len(feats))[:, None].expand_as(index)
    rows = torch.where(values == best.gather(0, index), rows, len(feats))
    first = rows.new_empty(best.shape).scatter_reduce(0, index, rows, 'amin', include_self=False)
    return feats.gather(0, first)
