"""What heads of an mmdet before 2.18 lack: priors of a level of any size, and a coder of distances.

Glossary: h, w rows and columns of a level's map, a priors of a cell, A priors of a level.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Default:
    """An attribute of a class, computed whenever it is read of an object that has none of this name.

    It can be set on an object.
    """

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.compute(instance)


def shifted_priors(base: torch.Tensor, size: Sequence[Any], stride: Sequence[float]) -> torch.Tensor:
    """Return the priors (A, columns) of a level, row by row: those of its first cell, moved to every cell.

    Args:
        base: (a, columns) anchors xyxy or points xy of the first cell, pixels.
        size: h and w, which stay sizes of tensors in a graph.
        stride: x and y, pixels.
    """
    y, x = (
        torch.arange(length, device=base.device).to(base.dtype) * step
        for length, step in zip(size, reversed(stride), strict=True)
    )
    rows, columns = torch.meshgrid(y, x, indexing='ij')
    shifts = torch.stack([columns, rows] * (base.shape[1] // 2), dim=-1)
    return (shifts.reshape(-1, 1, base.shape[1]) + base).reshape(-1, base.shape[1])


class LevelPoints:
    """The points of a head, one of each cell, as newer heads have them in their `prior_generator`.

    Attributes:
        strides: (x, y) of each level, pixels.
        base_points: (1, 2) of each level: x, y of the first cell's point, pixels.
        num_base_priors: 1 for each level.
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
        """Return the points (A, 2) of a level whose map has the size h, w, in pixels."""
        base = self.base_points[level_idx].to(device=device, dtype=dtype)
        return shifted_priors(base, featmap_size, self.strides[level_idx])


def points_of(head: Any) -> LevelPoints:
    """Return the points of a head, by its own method for the points of a map.

    Heads of FCOS return points in pixels, FoveaBox and RepPoints y and x in cells. RepPoints has strides of
    another name.
    """
    strides = [int(stride) for stride in getattr(head, 'point_strides', head.strides)]
    base_points = []
    for stride in strides:
        points = head._get_points_single((1, 1), stride, torch.float32, 'cpu')
        if isinstance(points, tuple):
            points = torch.stack([cells.reshape(-1) * stride for cells in reversed(points)], dim=-1)
        base_points.append(points)
    return LevelPoints([(stride, stride) for stride in strides], base_points)


class DistanceCoder:
    """The coder of heads that decode distances from points by mmdet's function `distance2bbox`.

    Attributes:
        clip_border: whether such heads clip their boxes to the image; they do it, not `decode`.
    """

    clip_border = True

    def decode(self, points: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Return boxes (A, 4) xyxy of points (A, 2) and distances (A, 4), pixels, not clipped.

        The distances are those to the left, top, right and bottom.
        """
        from mmdet.core.bbox.transforms import distance2bbox

        return distance2bbox(points, distances)
