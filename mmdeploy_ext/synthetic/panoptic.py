"""Panoptic annotations of the generated set: `mm2onnx synthetic panoptic --out data/toy_coco`."""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmdeploy_ext.compat.panoptic_quality import id2rgb
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.core.files import read_json, write_json
from mmdeploy_ext.runtime.detections import bounding_box
from mmdeploy_ext.synthetic import staging
from mmdeploy_ext.synthetic.coco import SPLITS, WORLD, ensure_toy_coco, start_sample
from mmdeploy_ext.synthetic.scene import CLASSES, PATTERNS, Instance, colour_pair, layout

STUFF = tuple(pattern.__name__.strip('_') for pattern in PATTERNS)
"""Classes of the ground; their labels follow those of the shapes."""


def ground_and_shapes(
    seed: int, split: str, index: int, size: tuple[int, int] | None
) -> tuple[int, list[Instance], tuple[int, int]]:
    """Return the ground (index into `STUFF`), the shapes, front to back, and (H, W) of a picture."""
    rng, (height, width), proposals = start_sample(seed, split, index, size)
    shapes = layout(rng, height, width, proposals)
    colour_pair(rng, (0.1, 0.45))
    return int(rng.integers(len(PATTERNS))), shapes, (height, width)


def segments_of(
    ground: int, shapes: Sequence[Instance], size: tuple[int, int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the segments (H, W) int64 of a picture and their entries in COCO's JSON.

    An entry has `id`, `category_id` (those of `CLASSES` from 1 on, then those of `STUFF`), `iscrowd`, `area`
    in pixels and `bbox` x y w h; a segment without pixels has none.

    Args:
        ground: pattern of the ground, index into `STUFF`.
        shapes: objects of the picture, front to back.
        size: (H, W) in pixels.
    """
    segments = np.ones(size, np.int64)
    for shape in shapes:
        segments[shape.alpha > 0] = 0
    for number, shape in enumerate(shapes, 2):
        segments[shape.mask] = number
    entries = []
    for number, label in enumerate([len(CLASSES) + ground, *(shape.label for shape in shapes)], 1):
        mask = segments == number
        if mask.any():
            x1, y1, x2, y2 = bounding_box(mask)
            box = [x1, y1, x2 - x1, y2 - y1]
            entries.append(dict(id=number, category_id=label + 1, iscrowd=0, area=int(mask.sum()), bbox=box))
    return segments, entries


def _write_split(folder: Path, split: str, parameters: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    size = tuple(parameters['size']) if parameters['size'] else None
    images, annotations = [], []
    for index in range(parameters[split]):
        ground, shapes, (height, width) = ground_and_shapes(parameters['seed'], split, index, size)
        segments, entries = segments_of(ground, shapes, (height, width))
        name = f'{index + 1:012d}'
        picture = folder / f'{name}.png'
        if not cv2.imwrite(str(picture), id2rgb(segments)[..., ::-1]):
            raise DataError(f'{picture}: OpenCV could not write the segments')
        images.append(dict(id=index + 1, file_name=f'{name}.jpg', height=height, width=width))
        annotations.append(dict(image_id=index + 1, file_name=f'{name}.png', segments_info=entries))
    names = [(name, 1, 'shape') for name in CLASSES] + [(name, 0, 'ground') for name in STUFF]
    categories = [
        dict(id=number, name=name, isthing=is_thing, supercategory=supercategory)
        for number, (name, is_thing, supercategory) in enumerate(names, 1)
    ]
    return dict(images=images, annotations=annotations, categories=categories)


def ensure_toy_panoptic(root: str | os.PathLike[str] = 'data/toy_coco', **parameters: Any) -> bool:
    """Make the annotations unless they exist, and a missing set first; return whether they were made."""
    root = Path(root)
    if not (root / staging.MANIFEST).is_file():
        ensure_toy_coco(root, **parameters)
    try:
        set_parameters = dict(read_json(root / staging.MANIFEST)['parameters'])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{root / staging.MANIFEST}: cannot be read; make the set again with --force'
        ) from error
    if set_parameters.get('world') != WORLD or not {'seed', 'size', *SPLITS} <= set_parameters.keys():
        raise DataError(
            f'{root / staging.MANIFEST}: is not that of a set of `mm2onnx synthetic coco` of world {WORLD}; '
            f'name one, or make it again with --force'
        )
    was_made = False
    with staging.locked(root):
        for split in SPLITS:
            target = root / 'annotations' / f'panoptic_{split}'
            if target.with_suffix('.json').is_file():
                continue
            shutil.rmtree(target, ignore_errors=True)
            write_json(target.with_suffix('.json'), _write_split(target, split, set_parameters))
            was_made = True
    return was_made


def run(args: argparse.Namespace) -> int:
    was_made = ensure_toy_panoptic(args.out)
    print(f'{args.out}: panoptic annotations {"made" if was_made else "already there, nothing to do"}')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run` to a parser."""
    staging.add_folder(parser, '--out', 'data/toy_coco')
