"""Polygons of four points to rotated boxes and back, for numpy and PyTorch (`xp`), by angle version.

Rotated boxes are x, y of the centre, width and height in pixels, and the angle in radians; `version` is a key
of `angles.VERSIONS`. Glossary: ... any axes. Source: mmrotate 0.3.4 `core/bbox/transforms.py`: `poly2obb`,
`hbb2obb`, `obb2xyxy`.
"""

from types import ModuleType
from typing import Any

import numpy as np

from mm2onnx_mmrotate.angles import PI, norm_angle

QUARTER = float(np.pi / 2)
QUARTER_REST = float(np.pi / 2 - np.float64(np.float32(np.pi / 2)))
"""What pi / 2 has beyond its float32."""


def box_of_polygon(xp: ModuleType, x: Any, y: Any, version: str) -> Any:
    """Return boxes (..., 5) of polygons whose corners are at x and y (..., 4), in order around them.

    Sides are the first two of the polygon, also if it is no rectangle. The longer one is the width, and the
    angle in the interval of the version; in `oc` it is in 0..pi/2, and the width may be the shorter one.
    """
    edge_x, edge_y = x[..., 1] - x[..., 0], y[..., 1] - y[..., 0]
    side = xp.sqrt(edge_x * edge_x + edge_y * edge_y)
    next_x, next_y = x[..., 1] - x[..., 2], y[..., 1] - y[..., 2]
    next_side = xp.sqrt(next_x * next_x + next_y * next_y)
    if version == 'oc':
        centre_x = (x[..., 0] + x[..., 1] + x[..., 2] + x[..., 3]) / 4
        centre_y = (y[..., 0] + y[..., 1] + y[..., 2] + y[..., 3]) / 4
        angle = direction(xp, -edge_x, edge_y)
        quarters = xp.floor(angle / QUARTER)
        even = quarters - 2 * xp.floor(quarters / 2) == 0
        width, height = xp.where(even, next_side, side), xp.where(even, side, next_side)
        rest = xp.fmod(angle, QUARTER)
        rest = xp.where(rest < 0, rest + QUARTER, rest)
        return xp.stack([centre_x, centre_y, width, height, rest], -1)
    along = side > next_side
    other_x, other_y = x[..., 3] - x[..., 0], y[..., 3] - y[..., 0]
    direction_x, direction_y = xp.where(along, edge_x, other_x), xp.where(along, edge_y, other_y)
    angle = norm_angle(xp, direction(xp, direction_y, direction_x), version)
    centre_x, centre_y = (x[..., 0] + x[..., 2]) / 2, (y[..., 0] + y[..., 2]) / 2
    longer, shorter = xp.where(along, side, next_side), xp.where(along, next_side, side)
    return xp.stack([centre_x, centre_y, longer, shorter, angle], -1)


def direction(xp: ModuleType, y: Any, x: Any) -> Any:
    """Return `arctan2(y, x)`, for which ONNX has no operator; 0 if both are 0, and -0.0 is as 0.0.

    The smaller coordinate is divided by the larger one, and what float32 lacks of pi is added to the small
    term: so the angle is rounded once, also where rounding decides between two readings of a box.
    """
    ones = xp.ones_like(x)
    steep = xp.abs(y) > xp.abs(x)
    longer, shorter = xp.where(steep, y, x), xp.where(steep, x, y)
    slope = xp.arctan(shorter / xp.where(longer == 0, ones, longer))
    sign = xp.where(y < 0, -ones, ones)
    steep_angle = QUARTER * sign - (slope - QUARTER_REST * sign)
    turned = PI * sign + (slope + 2 * QUARTER_REST * sign)
    return xp.where(steep, steep_angle, xp.where(x < 0, turned, slope))


def box_of_upright(xp: ModuleType, boxes: Any, version: str) -> Any:
    """Return boxes (..., 5) of upright ones (..., 4) xyxy.

    In `oc` the angle is pi/2, and the width is the side along y. In the others the width is the longer side;
    the angle is 0, or of a box that is taller than wide a quarter turn: -pi/2 in `le90`, pi/2 in `le135`.
    """
    x, y = (boxes[..., 0] + boxes[..., 2]) * 0.5, (boxes[..., 1] + boxes[..., 3]) * 0.5
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    angle = xp.zeros_like(x)
    if version == 'oc':
        return xp.stack([x, y, height, width, angle + QUARTER], -1)
    turn = angle + QUARTER if version == 'le135' else angle - QUARTER
    wide = width >= height
    sides = xp.where(wide, width, height), xp.where(wide, height, width)
    return xp.stack([x, y, *sides, xp.where(wide, angle, turn)], -1)


def bounds_of_box(xp: ModuleType, boxes: Any, version: str) -> Any:
    """Return the upright bounds (..., 4) xyxy of boxes (..., 5).

    For `oc`, whose angles are to be in 0..pi/2, mmrotate takes sine and cosine as they are: the bounds of
    other angles are too small, or exchanged.
    """
    width, height = boxes[..., 2], boxes[..., 3]
    cos, sin = xp.cos(boxes[..., 4]), xp.sin(boxes[..., 4])
    if version == 'oc':
        reach_x, reach_y = (cos * width + sin * height) / 2, (sin * width + cos * height) / 2
    else:
        reach_x = xp.abs(width / 2 * cos) + xp.abs(height / 2 * sin)
        reach_y = xp.abs(width / 2 * sin) + xp.abs(height / 2 * cos)
    x, y = boxes[..., 0], boxes[..., 1]
    return xp.stack([x - reach_x, y - reach_y, x + reach_x, y + reach_y], -1)
