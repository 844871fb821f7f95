"""Regions whose cells are moved before they are pooled: mmcv 1.7.2's deformable and modulated pooling.

Every moved cell is a region of one cell; its definition stands in `stack/plain_kernels.py`. Glossary: see
`regions.py`.
"""

import torch
from mmcv.ops import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoIAlign
from torch import nn

from mmdeploy_ext.exporting.ops.roi_align import pool_level
from mmdeploy_ext.stack.plain_kernels import bins_of

LAYERS = (DeformRoIPoolPack, ModulatedDeformRoIPoolPack)


def pool_moved(
    pooled: torch.Tensor,
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    level: int,
    layer: nn.Module,
    constant: bool = False,
) -> torch.Tensor:
    """Return `pooled` with the regions of one level filled in; see `pool_level`. `layer` is of `LAYERS`."""
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
