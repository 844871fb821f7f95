"""Regions that are pooled from points, or whose cells are moved before they are pooled, as mmcv 1.7.2 does.

Source: `ops/point_sample.py`; for deformable and modulated pooling `compat/plain_kernels.py`: every moved
cell is a region of one cell. Glossary: see `regions.py`; P points of a box.
"""

import torch
from mmcv.ops import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoIAlign
from mmcv.ops.point_sample import SimpleRoIAlign, generate_grid
from torch import nn
from torch.nn import functional

from mmdeploy_ext.compat.plain_kernels import bins_of
from mmdeploy_ext.exporting.ops.roi_align import pool_level
from mmdeploy_ext.exporting.postprocess.sizes import hw

MOVING = (DeformRoIPoolPack, ModulatedDeformRoIPoolPack)
"""Layers that move cells."""


def sampled(
    maps: torch.Tensor, boxes: torch.Tensor, points: torch.Tensor, scale: float, corners: bool = False
) -> torch.Tensor:
    """Return what a map (B, C, H, W) has at points of boxes, (R, C, P), as mmcv's `point_sample`.

    Boxes (R, 4) are xyxy in pixels of the network input, image by image, equally many of each; points
    (R or 1, P, 2) are x, y in 0..1 of the box; `scale` is cells of the map per pixel; `corners` is
    `align_corners` of PyTorch's `grid_sample`.
    """
    size = hw(maps).to(boxes).flip(0)
    places = points * (boxes[:, None, 2:] - boxes[:, None, :2]) + boxes[:, None, :2]
    grid = (places / size * scale) * 2.0 - 1.0
    grid = grid.reshape(maps.shape[0], -1, grid.shape[1], 2)
    found = functional.grid_sample(maps, grid, align_corners=corners)
    return found.transpose(1, 2).reshape(-1, maps.shape[1], grid.shape[2])


def pooled(layer: SimpleRoIAlign, maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return the features (R, C, h, w) of the middles of the cells of boxes; see `sampled`."""
    middles = generate_grid(1, layer.output_size, boxes.device)
    found = sampled(maps, boxes, middles, layer.spatial_scale, not layer.aligned)
    return found.reshape(*found.shape[:2], *layer.output_size)


def pool_moved(
    pooled: torch.Tensor,
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    level: int,
    layer: nn.Module,
    constant: bool,
) -> torch.Tensor:
    """Return `pooled` with the regions of one level filled in; see `pool_level`. `layer` is of `MOVING`."""
    height, width = layer.output_size
    scale, ratio, cells = float(layer.spatial_scale), int(layer.sampling_ratio), height * width
    whole = RoIAlign((height, width), scale, ratio, 'avg', True)
    first = pool_level(torch.zeros_like(pooled), maps, boxes, images, levels, level, whole, constant)
    offset = layer.offset_fc(first.flatten(1)).reshape(-1, 2, height, width)
    bins = bins_of(boxes, offset, (height, width), scale, float(layer.gamma))
    several = [one[:, None].expand(-1, cells).flatten() for one in (images, levels)]
    room = pooled.new_zeros((1,)).expand(bins.shape[0], pooled.shape[1])[..., None, None]
    found = pool_level(
        room, maps, bins, *several, level, RoIAlign((1, 1), scale, ratio, 'avg', True), constant
    )
    found = found.reshape(-1, height, width, pooled.shape[1]).permute(0, 3, 1, 2)
    if isinstance(layer, ModulatedDeformRoIPoolPack):
        found = found * layer.mask_fc(first.flatten(1)).reshape(-1, 1, height, width)
    return torch.where((levels == level)[:, None, None, None], found, pooled)
