"""Key points at the border of a picture, where rounding decides whether they are inside of it.

The operator, `plain_kernels.deformable_aggregation`, is discontinuous there: a point just inside has up to
half of its weight, one just outside has none. Engines round differently, and then one of them has a point
that the other has not. A proof compares such a frame with PyTorch's own result for these points on the other
side, and names them.

Glossary: A instances, P key points of each, N cameras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.upstream.compat import plain_kernels

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Collection

    from torch import Tensor

    Place = tuple[int, int, int, int]
    """Layer, instance, key point and camera."""

Result = TypeVar('Result')
NEAR = 5e-6
"""Distance from a border, in shares of the picture's side, up to which a point may be on either side.

Measured with R50 at full size over 3 frames, from the same memory: two engines place a point that is in a
picture up to 4.2e-6 apart, 99 of 100 of them no more than 3.0e-7.
"""
TRIALS = 24
"""Largest number of points of a frame that are tried on the other side."""
in_pictures = plain_kernels.in_pictures
"""The rule of the operator."""


class BorderPoints:
    """Answers for the operator which key points are in the pictures, and notes those at a border.

    Attributes:
        distances: place of a point at a border -> its distance from there, in shares of the picture's side.
    """

    def __init__(self, moved: Collection[Place] = ()) -> None:
        """Begin a frame; the points at a border that are in `moved` count as on its other side."""
        self.distances: dict[Place, float] = {}
        self._moved, self._layer = frozenset(moved), 0

    def __call__(self, places: Tensor) -> Tensor:
        """Return which points (A, P, N, 2) of the next layer are inside of their pictures (A, P, N).

        Points are x, y in shares of the picture's width and height.
        """
        inside = in_pictures(places)
        distance = torch.minimum(places.abs(), (1 - places).abs())
        is_near = (distance <= NEAR).any(-1) & ((places >= -NEAR) & (places <= 1 + NEAR)).all(-1)
        for instance, point, camera in is_near.nonzero().tolist():
            place = self._layer, instance, point, camera
            self.distances[place] = float(distance[instance, point, camera].min())
            if place in self._moved:
                inside[instance, point, camera] = ~inside[instance, point, camera]
        self._layer += 1
        return inside

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the operator has its answers from here; it is for one frame."""
        return replaced_entry(vars(plain_kernels), 'in_pictures', self)


def nearest_decision(
    run: Callable[[BorderPoints], Result], distance: Callable[[Result], float]
) -> tuple[Result, dict[Place, float]]:
    """Return the nearest result of runs with points at borders on either side, and the points that moved.

    The latter are place -> distance from the border, as in `BorderPoints.distances`. Points are tried one by
    one, the nearest to a border first, `TRIALS` at most, and stay on the other side if that makes the
    distance smaller. The points are those of `BorderPoints.distances` of the first run, in which none is
    moved.

    Args:
        run: runs the frame, from the same memory each time, in the context `answering` of the points that it
            takes.
        distance: function that returns the distance of a result from that of an engine.
    """
    points, moved = BorderPoints(), {}
    nearest = run(points)
    for place in sorted(points.distances, key=points.distances.get)[:TRIALS]:
        result = run(BorderPoints({*moved, place}))
        if distance(result) < distance(nearest):
            nearest, moved[place] = result, points.distances[place]
    return nearest, moved
