"""One generated picture: shapes with visible masks on textured ground.

Glossary: H, W height and width of a picture, pixels; P points of an outline.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

SUBPIXEL_BITS = 4
"""Outlines are drawn at 1/16 pixel, in integers, equal on every platform."""


def _regular(corners: int, radius: float | np.ndarray = 1.0) -> np.ndarray:
    angles = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


_ARM = np.array([[-0.36, -1.0], [0.36, -1.0], [0.36, -0.36]])
_QUARTER_TURN = np.array([[0.0, 1.0], [-1.0, 0.0]])  # of row vectors
OUTLINES = {
    'disc': [_regular(64)],
    'square': [_regular(4)],
    'triangle': [_regular(3)],
    'star': [_regular(10, np.tile([[1.0], [0.42]], (5, 1)))],
    'ring': [_regular(64), _regular(64, 0.55)],
    'cross': [np.concatenate([_ARM @ np.linalg.matrix_power(_QUARTER_TURN, k) for k in range(4)])],
}
"""Class -> loops of (P, 2) float64 points (x right, y down) in the unit circle: outer edge, then holes."""
CLASSES = tuple(OUTLINES)
"""Names of shapes by label."""


def outline_area(loops: list[np.ndarray]) -> float:
    """Return the area of an outline of (P, 2) loops (outer edge, then holes) without its holes."""
    areas = []
    for loop in loops:
        x, y = loop.T
        areas.append(abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2)
    return areas[0] - sum(areas[1:])


def place_outline(
    loops: list[np.ndarray],
    centre: tuple[float, float],
    side: float,
    aspect: float,
    angle: float,
    max_radius: float,
) -> list[np.ndarray]:
    """Stretch, scale, turn and move one of `OUTLINES`; return loops of (P, 2) float64 points in pixels.

    Args:
        loops: one of `OUTLINES`.
        centre: (x, y) in pixels.
        side: square root of the area in pixels.
        aspect: factor of width over height, before turning.
        angle: radians, clockwise on the screen.
        max_radius: largest distance from the centre, pixels; may reduce the area.
    """
    stretch = np.array([math.sqrt(aspect), 1 / math.sqrt(aspect)])
    stretched = [loop * stretch for loop in loops]
    radius = max(float(np.linalg.norm(loop, axis=1).max()) for loop in stretched)
    scale = min(side / math.sqrt(outline_area(stretched)), max_radius / radius)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [loop @ turn * scale + np.asarray(centre) for loop in stretched]


def coverage(loops: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Draw an outline, (H, W) uint8, 0 outside to 255 inside; `>= 128` is the instance mask.

    `loops` are (P, 2) x and y in pixels, (0, 0) in the middle of the first one: outer edge, then holes.
    """
    canvas = np.zeros((height, width), np.uint8)
    for index, loop in enumerate(loops):
        points = np.rint(loop * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 0 if index else 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return canvas


# ---------------------------------------------------------------- fills


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    field = np.zeros((height, width), np.float32)
    cell, weight, total = float(rng.uniform(16, 48)), 1.0, 0.0
    while cell >= 2 and weight > 0.1:
        grid = rng.random((math.ceil(height / cell) + 2, math.ceil(width / cell) + 2), dtype=np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        total += weight
        cell, weight = cell / 2, weight * 0.6
    return np.clip((field / total - 0.5) * 2.2 + 0.5, 0, 1)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    x = (np.arange(width, dtype=np.float32) - width / 2) * np.float32(math.cos(angle))
    y = (np.arange(height, dtype=np.float32) - height / 2) * np.float32(math.sin(angle))
    return y[:, None] + x[None, :]


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    period, hardness = rng.uniform(5, 18), rng.uniform(1, 4)
    wave = np.sin(_ramp(rng, height, width) * np.float32(2 * math.pi / period))
    return np.clip(wave * np.float32(hardness) / 2 + 0.5, 0, 1)


def _checker(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cell = rng.uniform(4, 14)
    along, across = (np.floor(_ramp(rng, height, width) / cell) for _ in range(2))
    return ((along + across) % 2).astype(np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.clip(_ramp(rng, height, width) / np.float32(max(height, width)) + 0.5, 0, 1)


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    speckle = rng.random((height, width), dtype=np.float32)
    smooth = cv2.GaussianBlur(speckle, (0, 0), float(rng.uniform(1, 3)))
    return np.clip((smooth - smooth.mean()) / (4 * smooth.std() + 1e-6) + 0.5, 0, 1)


PATTERNS = (_noise, _stripes, _checker, _gradient, _blobs)
"""Functions of (generator, height, width) that return a pattern, (H, W) float32, 0 to 1."""


def texture(rng: np.random.Generator, height: int, width: int, colours: np.ndarray) -> np.ndarray:
    """Return a rectangle (H, W, 3) float32 BGR, about 0..255, with a random pattern under uneven light.

    `colours` (2, 3) BGR in 0..255.
    """
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, height, width)
    light = 1 + 0.2 * (_gradient(rng, height, width) - 0.5)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1, 5))
    planes = [light * (first + (second - first) * pattern) + grain for first, second in colours.T]
    return cv2.merge(planes)  # plane by plane: three times as fast as broadcasting over a last axis of 3


def colour_pair(
    rng: np.random.Generator,
    contrast: tuple[float, float],
    unlike: np.ndarray | None = None,
    distance: float = 0.0,
) -> np.ndarray:
    """Draw two colours of one fill, (2, 3) float32 BGR in 0..255.

    `contrast` is the range of the way to an unrelated colour; the mean is at least `distance` from `unlike`
    (3,) BGR.
    """
    while True:
        first, unrelated = rng.uniform(20, 235, (2, 3)).astype(np.float32)
        second = first + (unrelated - first) * np.float32(rng.uniform(*contrast))
        pair = np.stack([first, second])
        if unlike is None or np.linalg.norm(pair.mean(0) - unlike) >= distance:
            return pair


# ---------------------------------------------------------------- pictures


MIN_VISIBLE = 0.25
"""Smallest visible share of an instance; others are removed from the scene."""
MIN_PIXELS = 48
"""Least visible pixels of an instance."""
SIDE_RANGES = ((12.0, 31.0), (33.0, 95.0), (97.0, 150.0))
"""Square roots of the area in pixels: COCO's small, medium and large."""
SIDE_SHARES = (0.3, 0.5, 0.2)
"""Share of tried shapes in each range."""
COLOUR_DISTANCE = 60.0
"""Smallest distance of mean colours of fill and ground, 0..255."""


@dataclass(frozen=True)
class Instance:
    """One shape of a scene.

    Attributes:
        label: index into `CLASSES`.
        alpha: (H, W) uint8, soft edges, hidden parts included.
        mask: (H, W) bool, visible pixels.
    """

    label: int
    alpha: np.ndarray
    mask: np.ndarray


def _propose(rng: np.random.Generator, height: int, width: int) -> tuple[int, list[np.ndarray]]:
    label = int(rng.integers(len(CLASSES)))
    low, high = SIDE_RANGES[rng.choice(len(SIDE_RANGES), p=SIDE_SHARES)]
    side = math.exp(rng.uniform(math.log(low), math.log(high)))
    margin = min(0.55 * side, 0.4 * min(height, width))
    centre = (rng.uniform(margin, width - margin), rng.uniform(margin, height - margin))
    aspect = math.exp(rng.uniform(-0.25, 0.25))
    angle = rng.uniform(0, 2 * math.pi)
    loops = place_outline(OUTLINES[CLASSES[label]], centre, side, aspect, angle, 0.48 * min(height, width))
    return label, loops


def layout(rng: np.random.Generator, height: int, width: int, proposals: int) -> list[Instance]:
    """Place up to `proposals` shapes at random; return them from front to back."""
    covered = np.zeros((height, width), bool)
    instances = []
    for _ in range(proposals):
        label, loops = _propose(rng, height, width)
        alpha = coverage(loops, height, width)
        mask = (alpha >= 128) & ~covered
        visible = int(mask.sum())
        if visible < max(MIN_PIXELS, MIN_VISIBLE * outline_area(loops)):
            continue
        covered |= mask
        instances.append(Instance(label, alpha, mask))
    return instances


def make_scene(
    rng: np.random.Generator, height: int, width: int, proposals: int
) -> tuple[np.ndarray, list[Instance]]:
    """Lay out and paint one picture, (H, W, 3) uint8 BGR; equal generators give equal pictures."""
    instances = layout(rng, height, width, proposals)
    ground = colour_pair(rng, (0.1, 0.45))
    canvas = texture(rng, height, width, ground)
    for instance in reversed(instances):
        colours = colour_pair(rng, (0.1, 0.6), ground.mean(0), COLOUR_DISTANCE)
        left, top, box_width, box_height = cv2.boundingRect(instance.alpha)
        box = slice(top, top + box_height), slice(left, left + box_width)
        weight = instance.alpha[box][..., None].astype(np.float32) / 255
        canvas[box] += weight * (texture(rng, box_height, box_width, colours) - canvas[box])
    blurred = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.3, 0.8)))
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8), instances
