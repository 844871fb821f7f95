"""Outlines of the shape classes: unit polygons, and their placement in an image."""

import math

import cv2
import numpy as np

SUBPIXEL_BITS = 4
"""Outlines are drawn at 1/16 pixel, so that integers, not the platform's floats, decide on every pixel."""


def _regular(corners: int, radius: float | np.ndarray = 1.0) -> np.ndarray:
    angles = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float = 0.36) -> np.ndarray:
    quarter = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # row vectors, a quarter turn each
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


OUTLINES = {
    'disc': [_regular(64)],
    'square': [_regular(4)],
    'triangle': [_regular(3)],
    'star': [_regular(10, np.tile([[1.0], [0.42]], (5, 1)))],
    'ring': [_regular(64), _regular(64, 0.55)],
    'cross': [_cross()],
}
"""Class -> loops of (P, 2) float64 points (x right, y down) in the unit circle (the cross reaches 1.06): the
outer edge first, then holes."""
CLASSES = tuple(OUTLINES)


def outline_area(loops: list[np.ndarray]) -> float:
    """Give the area enclosed by an outline, holes taken off, in squared units of its points."""
    areas = []
    for loop in loops:
        x, y = loop.T
        areas.append(abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2)
    return areas[0] - sum(areas[1:])


def place(
    loops: list[np.ndarray],
    centre: tuple[float, float],
    side: float,
    aspect: float,
    angle: float,
    max_radius: float,
) -> list[np.ndarray]:
    """Stretch, scale, turn and move one of `OUTLINES`, to loops of (P, 2) float64 points in pixels.

    The centre is (x, y) in pixels, `side` the wanted square root of the area in pixels, `aspect` width over
    height before turning, the angle in radians, clockwise on the screen. `max_radius`, the farthest point
    from the centre allowed, in pixels, wins over `side`.
    """
    stretch = np.array([math.sqrt(aspect), 1 / math.sqrt(aspect)])
    stretched = [loop * stretch for loop in loops]
    radius = max(float(np.linalg.norm(loop, axis=1).max()) for loop in stretched)
    scale = min(side / math.sqrt(outline_area(stretched)), max_radius / radius)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [loop @ turn * scale + np.asarray(centre) for loop in stretched]


def coverage(loops: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Draw an outline in pixels, (H, W) uint8, 0 outside to 255 inside; `>= 128` is the instance mask.

    The edges are soft; OpenCV's fill takes the edge in, so it comes out half a pixel wider. The outline may
    reach outside the image.
    """
    canvas = np.zeros((height, width), np.uint8)
    for index, loop in enumerate(loops):
        points = np.rint(loop * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 0 if index else 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return canvas
