"""Boxes of Grid R-CNN: the sides of detections by the likeliest places of the points of a grid.

Source: mmdet 2.28.2 `roi_heads/grid_roi_head.py`, `mask_heads/grid_head.py`. mmdet clips a copy of
the boxes: they reach beyond the image. Glossary: see `parts/regions.py`; P points of the grid, column by
column, m side of their maps.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.region_maps import grid_of
from mmdeploy_ext.families.parts.regions import Pool, check_extractor


def check_grid(roi_head: nn.Module) -> None:
    """Refuse (ConfigError) a grid that the graph does not repeat; with masks mmdet scales boxes otherwise."""
    check_extractor(roi_head.grid_roi_extractor)
    if roi_head.with_mask:
        raise ConfigError('model.roi_head: GridRoIHead exports without a mask_head')


class Grid(nn.Module):
    """The maps of points of every detection, and the box that they vote for."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        """Keep extractor and head, and which points lie on which side; for `constant` see `pool_level`."""
        super().__init__()
        self.pool, self.head = Pool(roi_head.grid_roi_extractor, constant), grid_of(roi_head)
        side, points = self.head.grid_size, range(self.head.grid_points)
        columns, rows = ([one // side for one in points], [one % side for one in points])
        ends = [(columns, 0), (rows, 0), (columns, side - 1), (rows, side - 1)]
        self.sides = [[one for one in points if where[one] == end] for where, end in ends]
        corners = torch.tensor(self.head.sub_regions)[:, :2]
        self.register_buffer('corners', corners, persistent=False)

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        dets: torch.Tensor,
        labels: torch.Tensor,
        scale_factor: torch.Tensor,
    ) -> tuple[torch.Tensor]:
        """Return dets (B, n, 5) with the boxes that the points vote for, divided by `scale_factor` (B, 4).

        `dets` (B, n, 5) are boxes in pixels of the network input, and scores; labels are -1 where a
        row is padding.
        """
        images = torch.arange(dets.shape[0], device=dets.device)[:, None].expand(-1, dets.shape[1])
        boxes = dets[..., :4].flatten(0, 1)
        logits = self.head(self.pool(maps, boxes, images.flatten()))['fused']
        side = logits.shape[-1]
        votes, cells = logits.sigmoid().flatten(2).max(dim=2)
        cells = torch.stack([cells % side, cells // side], dim=2) + self.corners
        size = (boxes[:, 2:] - boxes[:, :2])[:, None]
        places = (cells.to(boxes) + 0.5) / side * size + (boxes[:, None, :2] - size / 2)
        voted = [
            (places[:, on, axis % 2] * votes[:, on]).sum(dim=1) / votes[:, on].sum(dim=1)
            for axis, on in enumerate(self.sides)
        ]
        found = torch.stack(voted, dim=1).reshape(*dets.shape[:2], 4)
        found = torch.cat([found / scale_factor[:, None], dets[..., 4:]], dim=2)
        return (torch.where(labels[..., None] >= 0, found, torch.zeros_like(found)),)
