"""One generated picture: shapes with visible masks on textured ground."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mmdeploy_ext.synthetic.shapes import CLASSES, OUTLINES, coverage, outline_area, place
from mmdeploy_ext.synthetic.textures import colour_pair, texture

MIN_VISIBLE = 0.25
"""An instance of which less than this share can be seen is taken out of the scene, not only of the labels."""
MIN_PIXELS = 48
"""Visible pixels an instance needs at least."""
SIDE_RANGES = ((12.0, 31.0), (33.0, 95.0), (97.0, 150.0))
"""Square root of the area in pixels: COCO's small, medium and large."""
SIDE_SHARES = (0.3, 0.5, 0.2)
COLOUR_DISTANCE = 60.0
"""Between the mean colours of a fill and of the ground, 0..255, so that shapes can be told from it."""


@dataclass(frozen=True)
class Instance:
    """One shape of a scene.

    Attributes:
        label: Index into `CLASSES`.
        alpha: (H, W) uint8, the whole shape with soft edges.
        mask: (H, W) bool, the pixels that can be seen.
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
    loops = place(OUTLINES[CLASSES[label]], centre, side, aspect, angle, 0.48 * min(height, width))
    return label, loops


def layout(rng: np.random.Generator, height: int, width: int, proposals: int) -> list[Instance]:
    """Place shapes from front to back; those that the ones in front hide too much are left out.

    Of the proposals at most that many remain, the frontmost first. Their masks do not overlap.
    """
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


def _paint(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray, colours: np.ndarray) -> None:
    x, y, width, height = cv2.boundingRect(alpha)
    crop = canvas[y : y + height, x : x + width]
    weight = alpha[y : y + height, x : x + width, None].astype(np.float32) / 255
    crop += weight * (texture(rng, height, width, colours) - crop)


def render(rng: np.random.Generator, height: int, width: int, instances: list[Instance]) -> np.ndarray:
    """Paint a layout, the frontmost first as `layout` gives it: (H, W, 3) uint8 BGR."""
    ground = colour_pair(rng, (0.1, 0.45))
    canvas = texture(rng, height, width, ground)
    for instance in reversed(instances):
        colours = colour_pair(rng, (0.1, 0.6), ground.mean(0), COLOUR_DISTANCE)
        _paint(rng, canvas, instance.alpha, colours)
    soft = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.3, 0.8)))
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def make_scene(
    rng: np.random.Generator, height: int, width: int, proposals: int
) -> tuple[np.ndarray, list[Instance]]:
    """Lay out and paint one picture, (H, W, 3) uint8 BGR; equal generators give equal pictures."""
    instances = layout(rng, height, width, proposals)
    return render(rng, height, width, instances), instances
