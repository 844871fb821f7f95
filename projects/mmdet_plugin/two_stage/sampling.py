"""Maps at points of boxes, and regions that are pooled from points: mmcv 1.7.2's `ops/point_sample.py`.

Glossary: see `regions.py`; P points of a box.
"""

import torch
from mmcv.ops.point_sample import SimpleRoIAlign, generate_grid
from torch.nn import functional

from mmdeploy_ext.exporting.postprocess.sizes import hw


def sampled(
    maps: torch.Tensor, boxes: torch.Tensor, points: torch.Tensor, scale: float, corners: bool = False
) -> torch.Tensor:
    """Return what a map (B, C, H, W) has at points of boxes, (R, C, P), as mmcv's `point_sample`.

    Args:
        maps: (B, C, H, W).
        boxes: (R, 4) xyxy in pixels of the network input, image by image, equally many of each.
        points: (R or 1, P, 2) x, y in 0..1 of the box.
        scale: of the map, cells per pixel.
        corners: `align_corners` of PyTorch's `grid_sample`.
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
