"""Priors of a level of any size, and a coder of distances, for heads of mmdet before 2.18.

h, w rows and columns of a level's map, a priors of a cell, A priors of a level.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Default:
    """An attribute that is computed when it is read, unless it was set."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.compute(instance)


def shifted_priors(base: torch.Tensor, size: Sequence[Any], stride: Sequence[float]) -> torch.Tensor:
    """Priors (A, columns) of a level, row by row, from the first cell's (a, columns) xyxy or xy, pixels.

    `size` is h, w, also tensors; `stride` is x, y, pixels.
    """
    y, x = (
        torch.arange(length, device=base.device).to(base.dtype) * step
        for length, step in zip(size, reversed(stride), strict=True)
    )
    rows, columns = torch.meshgrid(y, x, indexing='ij')
    shifts = torch.stack([columns, rows] * (base.shape[1] // 2), dim=-1)
    return (shifts.reshape(-1, 1, base.shape[1]) + base).reshape(-1, base.shape[1])


class LevelPoints:
    """The points of a head, one per cell, as a newer `prior_generator`.

    Attributes:
        strides: (x, y) per level, pixels.
        base_points: (1, 2) per level, pixels.
        num_base_priors: 1 per level.
    """

    def __init__(self, strides: Sequence[tuple[float, float]], base_points: Sequence[torch.Tensor]) -> None:
        self.strides, self.base_points = list(strides), list(base_points)
        self.num_base_priors = [1] * len(self.strides)

    def single_level_grid_priors(
        self,
        featmap_size: Sequence[Any],
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: Any = 'cuda',
    ) -> torch.Tensor:
        """Points (A, 2) of a level of size h, w, pixels."""
        base = self.base_points[level_idx].to(device=device, dtype=dtype)
        return shifted_priors(base, featmap_size, self.strides[level_idx])


def points_of(head: Any) -> LevelPoints:
    """Points of a head by its own method: FCOS returns pixels, FoveaBox and RepPoints y, x in cells."""
    strides = [int(stride) for stride in getattr(head, 'point_strides', head.strides)]
    base_points = []
    for stride in strides:
        points = head._get_points_single((1, 1), stride, torch.float32, 'cpu')
        if isinstance(points, tuple):
            points = torch.stack([cells.reshape(-1) * stride for cells in reversed(points)], dim=-1)
        base_points.append(points)
    return LevelPoints([(stride, stride) for stride in strides], base_points)


class DistanceCoder:
    """Coder of heads that call mmdet's `distance2bbox` and clip boxes themselves."""

    clip_border = True

    def decode(self, points: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Boxes (A, 4) xyxy of points (A, 2) and distances (A, 4), pixels, not clipped.

        Distances are left, top, right, bottom.
        """
        from mmdet.core.bbox.transforms import distance2bbox

        return distance2bbox(points, distances)
