"""A data set in DOTA's format, generated: `python -m mm2onnx_mmrotate.synthetic --out data/toy_dota`.

Five of DOTA's classes seen from above on textured ground: shapes of their own proportions, each turned by any
angle, which do not touch; some pictures are empty. Vehicles and tennis courts are rectangles, ships have a
pointed bow; storage tanks are discs, whose boxes are upright squares as in DOTA. The layout is that of
mmrotate's split of DOTA: `train/images/*.png` and `train/annfiles/*.txt`, and the same in `val`; a line of an
annotation has the corners x1 y1 ... x4 y4 in pixels, the class, and the difficulty 0.

Every picture has its own random stream, seeded by (seed, split, index). Glossary: H, W size of a picture, n
objects.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mm2onnx_mmrotate.detections import UNIT_CORNERS, corners_of
from mmdeploy_ext.families.synthetic.scene import SUBPIXEL_BITS, colour_pair, coverage, texture

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

WORLD = 1
"""Version of the world; raise it when the same seed gives other pictures, so that older sets are refused."""
TRAIN_IMAGES, VAL_IMAGES = 400, 80
SIDE = 256
"""Height and width of a picture, pixels."""
EMPTY_EVERY = 20
"""Every 20th picture shows only ground."""
MAX_OBJECTS = 12
TRIALS = 20
"""Places that are tried per object, all objects of a picture together."""
GAP = 3.0
"""Pixels by which each object is grown on all sides, so that two are twice as far apart at least."""
MANIFEST = 'READY.json'
"""File of a finished set: its parameters."""
_STREAMS = {'train': 0, 'val': 1, 'picture': 2}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of objects.

    Attributes:
        length: smallest and largest length, pixels.
        aspect: smallest and largest ratio of length to width.
        outline: (points, 2) in the unit square around 0 (-0.5..0.5), x along the object.
        marks: lines on the object, each (2, 2) in the same square, as wide as `mark_width` of its width, one
            pixel at least.
    """

    length: tuple[float, float]
    aspect: tuple[float, float]
    outline: np.ndarray
    marks: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = ()
    mark_width: float = 0.08


_DIRECTIONS = np.arange(48) * (2 * math.pi / 48)
DISC = np.stack([np.cos(_DIRECTIONS), np.sin(_DIRECTIONS)], axis=1) / 2
"""Outline of a disc of diameter 1 around 0, a polygon of 48 corners."""
KINDS = {
    'small-vehicle': Kind((14, 24), (1.7, 2.3), UNIT_CORNERS, (((0.15, -0.5), (0.15, 0.5)),), 0.3),
    'large-vehicle': Kind((30, 56), (2.8, 4.0), UNIT_CORNERS, (((0.25, -0.5), (0.25, 0.5)),), 0.2),
    'ship': Kind(
        (36, 96),
        (3.0, 5.0),
        np.array([[-0.5, -0.5], [0.2, -0.5], [0.5, 0], [0.2, 0.5], [-0.5, 0.5]]),
        (((-0.35, 0), (0.2, 0)),),
        0.3,
    ),
    'tennis-court': Kind(
        (44, 80),
        (1.8, 2.2),
        UNIT_CORNERS,
        (((-0.42, -0.35), (0.42, -0.35)), ((-0.42, 0.35), (0.42, 0.35)), ((0, -0.5), (0, 0.5))),
    ),
    'storage-tank': Kind((16, 44), (1.0, 1.0), DISC, (), 0.0),
}
"""Name of a class, one of DOTA's -> its appearance."""
CLASSES = tuple(KINDS)
UPRIGHT = ('storage-tank',)
"""Classes whose boxes are not turned: a disc has no direction."""
COLOUR_DISTANCE = 70.0
"""Least distance of the mean colours of an object and of the ground, in 0..255: objects are visible."""
MARK_COLOURS = (30.0, 230.0)
"""Brightness of marks on bright and on dark objects."""


@dataclasses.dataclass(frozen=True)
class Aerial:
    """A generated picture and its objects.

    Attributes:
        image_bgr: (H, W, 3) uint8.
        boxes: (n, 5) float64 cx, cy, length and width in pixels, and angle in radians, -pi to pi from x to y:
            clockwise as the picture is shown.
        labels: (n,) int64 indices into `CLASSES`.
    """

    image_bgr: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def sample(seed: int, split: str, index: int, size: tuple[int, int] = (SIDE, SIDE)) -> Aerial:
    """Make one picture of the world.

    Args:
        seed: seed of the set.
        split: 'train', 'val', or 'picture' for pictures that are in neither; any other is a KeyError.
        index: number of the picture in its split.
        size: (H, W) in pixels.
    """
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    count = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(2, MAX_OBJECTS + 1))
    boxes, labels = place_objects(rng, count, size)
    return Aerial(paint(rng, boxes, labels, size), boxes, labels)


def place_objects(
    rng: np.random.Generator, count: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (n, 5) and labels (n,) of up to `count` objects that do not touch, all inside a picture.

    `size` is (H, W) of the picture.
    """
    height, width = size
    boxes, labels, occupied = [], [], np.zeros(size, np.uint8)
    for _ in range(count * TRIALS):
        if len(boxes) == count:
            break
        label = int(rng.integers(len(CLASSES)))
        kind = KINDS[CLASSES[label]]
        length = math.exp(rng.uniform(*map(math.log, kind.length)))
        across = length / rng.uniform(*kind.aspect)
        angle = 0.0 if CLASSES[label] in UPRIGHT else rng.uniform(-math.pi, math.pi)
        reach = math.hypot(length, across) / 2 + GAP
        if 2 * reach >= min(size):
            continue
        centre = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
        margin = np.array([[*centre, length + 2 * GAP, across + 2 * GAP, angle]])
        footprint = coverage(list(corners_of(margin)), height, width)
        if (occupied[footprint > 0] > 0).any():
            continue
        occupied = np.maximum(occupied, footprint)
        boxes.append((*centre, length, across, angle))
        labels.append(label)
    return np.array(boxes, np.float64).reshape(-1, 5), np.array(labels, np.int64)


def paint(
    rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 BGR of objects, boxes (n, 5) with labels (n,), on textured ground.

    `size` is (H, W); boxes have the columns of `Aerial`.
    """
    height, width = size
    ground = colour_pair(rng, (0.1, 0.4))
    canvas = texture(rng, height, width, ground)
    for box, label in zip(boxes, labels, strict=True):
        kind = KINDS[CLASSES[label]]
        colours = colour_pair(rng, (0.05, 0.2), ground.mean(0), COLOUR_DISTANCE)
        alpha = coverage([_on_ground(kind.outline, box)], height, width)
        left, top, box_width, box_height = cv2.boundingRect(alpha)
        part = slice(top, top + box_height), slice(left, left + box_width)
        weight = alpha[part][..., None].astype(np.float32) / 255
        canvas[part] += weight * (texture(rng, box_height, box_width, colours) - canvas[part])
        brightness = MARK_COLOURS[int(colours.mean() < sum(MARK_COLOURS) / 2)]
        thickness = max(1, round(kind.mark_width * box[3]))
        for mark in kind.marks:
            ends = np.rint(_on_ground(np.array(mark), box) * (1 << SUBPIXEL_BITS)).astype(int)
            start, end = (tuple(map(int, point)) for point in ends)
            cv2.line(canvas, start, end, (brightness,) * 3, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    blurred = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.3, 0.8)))
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8)


def _on_ground(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return points (m, 2) of the unit square on an object (5,), in pixels of the picture."""
    x, y = (points * box[2:4]).T
    cos, sin = math.cos(box[4]), math.sin(box[4])
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + box[:2]


def annotation_lines(boxes: np.ndarray, labels: np.ndarray) -> str:
    """Return DOTA's annotation of a picture: a line per object, boxes (n, 5) with labels (n,)."""
    lines = []
    for corners, label in zip(corners_of(boxes), labels, strict=True):
        lines.append(' '.join([*(f'{value:.2f}' for value in corners.ravel()), CLASSES[label], '0']) + '\n')
    return ''.join(lines)


def write_png(path: Path, image_bgr: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 as PNG, the only kind that mmrotate's `DOTADataset` reads."""
    _, encoded = cv2.imencode('.png', image_bgr)
    path.write_bytes(encoded.tobytes())


def ensure_toy_dota(
    root: str | os.PathLike[str] = 'data/toy_dota',
    *,
    seed: int = 0,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
) -> bool:
    """Make the set unless it exists already; return whether it was made.

    FileExistsError: `root` is another folder, or a set with other parameters.
    """
    root, counts = Path(root), dict(train=train_images, val=val_images)
    parameters = dict(world=WORLD, seed=seed, **counts)
    if root.exists():
        manifest = root / MANIFEST
        if manifest.is_file() and json.loads(manifest.read_text(encoding='utf-8')) == parameters:
            return False
        raise FileExistsError(
            f'{root}: already exists with other parameters than {parameters}; remove it, or choose '
            'another folder'
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory('.part', f'.{root.name}.', root.parent) as beside:
        unfinished = Path(beside, 'new')
        for split, count in counts.items():
            images, annotations = unfinished / split / 'images', unfinished / split / 'annfiles'
            images.mkdir(parents=True)
            annotations.mkdir()
            for index in range(count):
                aerial, name = sample(seed, split, index), f'P{index:04d}'
                write_png(images / f'{name}.png', aerial.image_bgr)
                lines = annotation_lines(aerial.boxes, aerial.labels)
                (annotations / f'{name}.txt').write_text(lines, encoding='utf-8')
        (unfinished / MANIFEST).write_text(json.dumps(parameters), encoding='utf-8')
        unfinished.rename(root)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set, or one picture of the same world, and return 0; SystemExit: an option is out of range."""
    parser = argparse.ArgumentParser(
        prog='python -m mm2onnx_mmrotate.synthetic', description="Generate a data set in DOTA's format."
    )
    parser.add_argument(
        '--out', default='data/toy_dota', help='folder of the data set (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train-images', type=int, default=TRAIN_IMAGES, metavar='N')
    parser.add_argument('--val-images', type=int, default=VAL_IMAGES, metavar='M')
    parser.add_argument(
        '--picture',
        metavar='FILE',
        help='write a single PNG image outside of the splits instead of a data set',
    )
    args = parser.parse_args(argv)
    for option, minimum in dict(seed=0, train_images=1, val_images=1).items():
        if getattr(args, option) < minimum:
            parser.error(f'--{option.replace("_", "-")}: expected {minimum} or more')
    if args.picture:
        if not args.picture.lower().endswith('.png'):
            parser.error(f'--picture {args.picture}: expected a .png file')
        write_png(Path(args.picture), sample(args.seed, 'picture', 0).image_bgr)
        print(f'{args.picture}: written')
        return 0
    counts = dict(train_images=args.train_images, val_images=args.val_images)
    try:
        was_made = ensure_toy_dota(args.out, seed=args.seed, **counts)
    except FileExistsError as error:
        parser.error(str(error))
    made = f'{args.train_images} training and {args.val_images} validation images written'
    print(f'{args.out}: {made if was_made else "already there"}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
