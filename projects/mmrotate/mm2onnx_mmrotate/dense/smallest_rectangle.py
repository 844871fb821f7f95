"""The smallest rectangle around points, for numpy and PyTorch (`xp`): heads of points have boxes by it.

A side of the smallest rectangle lies on a side of the convex hull, which joins two of the points. All pairs
are tried whose other points are on one side: every shape is constant.

If the hull is a triangle, the rectangles on its sides have the same area, and rounding would choose: of those
that are not larger by `TIE` the one whose direction is nearest to that of x is taken.

Glossary: B images, A priors, P points, D = P * (P - 1) / 2 pairs.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_mmrotate.angles import norm_angle

if TYPE_CHECKING:
    from types import ModuleType

QUARTER = float(np.pi / 2)
TIE = 1e-4
"""Rectangles that are larger by no more than this share of the smallest area are as small."""
NEAR = 1e-4
"""A pair is on the hull if all points are on one side of it, or beyond it by this share of their extent."""
FAR = 1e30
"""Area of a rectangle along a pair that is not on the hull."""


def smallest_rectangle(xp: ModuleType, x: Any, y: Any, version: str) -> Any:
    """Return the rectangles (B, A, 5) around points: centre x and y, width, height, angle.

    Places and sizes are in the unit of the points, strides in the heads. The angle is that of the side called
    width, in radians from x towards y. Where it is pi/2 numpy warns of a division by zero, whose result is
    right.

    Args:
        xp: numpy or torch, the module of the points.
        x: (B, A, P) floats, P 2 or more.
        y: (B, A, P) floats.
        version: key of `angles.VERSIONS`, the version of the angle. In 'oc' it is in 0..pi/2, ends included,
            and the width may be the shorter side. In 'le90' it is in -pi/2..pi/2 and in 'le135' in
            -pi/4..3 pi/4, without the upper end but by rounding, and the width is the longer side.

    Raises:
        KeyError: another version.
    """
    pairs = np.array(list(itertools.combinations(range(x.shape[-1]), 2)))
    dx, dy = (values[..., pairs[:, 1]] - values[..., pairs[:, 0]] for values in (x, y))
    length = xp.sqrt(dx * dx + dy * dy)
    together = length <= 0
    length = xp.where(together, xp.ones_like(length), length)
    cos, sin = xp.where(together, xp.ones_like(dx), dx / length), dy / length
    left, right, low, high = _extents(xp, x[..., None, :], y[..., None, :], cos[..., None], sin[..., None])
    place = y[..., pairs[:, 0]] * cos - x[..., pairs[:, 0]] * sin
    near = NEAR * (high - low)
    on_hull = (place - low <= near) | (high - place <= near)
    area = xp.where(on_hull, (right - left) * (high - low), xp.zeros_like(low) + FAR)
    # the same rectangle from a direction in 0..pi/2
    cos, sin = xp.where(sin < 0, -cos, cos), abs(sin)
    cos, sin = xp.where(cos <= 0, sin, cos), xp.where(cos <= 0, -cos, sin)
    smallest = _least(xp, area)[..., None] * (1 + TIE)
    best = xp.where(area <= smallest, cos, xp.zeros_like(cos) - 1).argmax(-1)
    cos, sin = _at(cos, best), _at(sin, best)
    left, right, low, high = _extents(xp, x, y, cos[..., None], sin[..., None])
    width, height, angle = right - left, high - low, xp.arctan(sin / cos)
    u, v = (left + right) / 2, (low + high) / 2
    if version != 'oc':
        longer = width > height
        angle = norm_angle(xp, xp.where(longer, angle, angle + QUARTER), version)
        width, height = xp.where(longer, width, height), xp.where(longer, height, width)
    return xp.stack([u * cos - v * sin, u * sin + v * cos, width, height, angle], -1)


def _extents(xp: ModuleType, x: Any, y: Any, cos: Any, sin: Any) -> tuple[Any, Any, Any, Any]:
    """Return the least and largest places of points along a direction, and the same across it."""
    along, across = x * cos + y * sin, y * cos - x * sin
    return _least(xp, along), -_least(xp, -along), _least(xp, across), -_least(xp, -across)


def _least(xp: ModuleType, values: Any) -> Any:
    """Return the least values of the last axis."""
    return values.min(-1) if xp is np else values.amin(-1)


def _at(values: Any, index: Any) -> Any:
    """Return the values (B, A) of (B, A, D) at indices (B, A)."""
    if isinstance(values, np.ndarray):
        return np.take_along_axis(values, index[..., None], -1)[..., 0]
    return values.gather(-1, index[..., None])[..., 0]
