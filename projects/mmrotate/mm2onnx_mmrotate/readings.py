"""The readings of a rectangle: which of them are right where rounding decides between two. Needs numpy only.

A rectangle can be read as four boxes, a quarter turn apart, with width and height exchanged at every second
one; the angle version of a model decides which of them it gives. Rounding decides at the ends of the interval
of the version, and for squares. `version` is a key of `WRAPS`.
"""

import numpy as np

QUARTER = np.pi / 2
"""Radians."""
WRAPS = dict(le90=(2, -np.pi / 2), le135=(2, -np.pi / 4), oc=(1, 0.0))
"""Angle version -> quarter turns from one end of its interval of angles to the other, and where it begins.

`le90` is -pi/2 to pi/2, `le135` -pi/4 to 3/4 pi, `oc` 0 to pi/2. mmrotate wraps angles into the first two;
those of `oc` stay as they are decoded.
"""
ANGLE_EPS = 1e-3
"""Radians. An angle this close to an end of the interval may be at the other end for another engine. Tensors
within 1e-4 give angles within that."""
SQUARE_EPS = 1e-3
"""Difference of w and h, relative to the larger, up to which rounding decides which side is longer."""
MOST_TURNS = 3
"""Quarter turns between two of the four readings of a rectangle at most."""


def quarter_turns(angles: np.ndarray, other_angles: np.ndarray) -> np.ndarray:
    """Return by how many whole quarter turns other angles, radians, are larger; the arrays are broadcast.

    It is NaN or infinite if an angle is.
    """
    return np.rint((other_angles.astype(np.float64) - angles) / QUARTER)


def is_wrap(boxes: np.ndarray, turns: np.ndarray, version: str) -> np.ndarray:
    """Return whether rounding decides between boxes (..., 5) and readings that are `turns` (...) apart.

    Boxes are centre x and y, width, height, and the angle in radians; `turns` are quarter turns, and both are
    broadcast. It never does between angles that are four quarter turns or more apart, or not finite. It
    is true of a square and 0 turns, which change nothing.
    """
    width, height, angle = np.moveaxis(boxes[..., 2:].astype(np.float64), -1, 0)
    square = np.abs(width - height) <= SQUARE_EPS * np.maximum(width, height)
    across, start = WRAPS[version]
    end = start + across * QUARTER
    at_end = np.minimum(np.abs(angle - start), np.abs(angle - end)) <= ANGLE_EPS
    distance = np.abs(turns)
    return (square & (distance <= MOST_TURNS)) | (at_end & (distance == across))


def read_as(boxes: np.ndarray, engine_boxes: np.ndarray, version: str) -> np.ndarray:
    """Return boxes (..., 5) in the readings of `engine_boxes` (..., 5), wherever rounding decides of two.

    Boxes have the columns of `is_wrap`, and are compared index by index. The numbers are those of `boxes`:
    sides are exchanged, and whole quarter turns are added to the angle. Where rounding does not decide, a box
    keeps its own reading.
    """
    turns = quarter_turns(boxes[..., 4], engine_boxes[..., 4])
    turns = np.where(is_wrap(boxes, turns, version), turns, 0)
    odd = turns % 2 == 1
    width, height = np.where(odd, boxes[..., 3], boxes[..., 2]), np.where(odd, boxes[..., 2], boxes[..., 3])
    angle = (boxes[..., 4] + turns * QUARTER).astype(boxes.dtype)
    return np.concatenate([boxes[..., :2], np.stack([width, height, angle], -1)], -1)
