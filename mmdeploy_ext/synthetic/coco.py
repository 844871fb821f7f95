"""A COCO-format instance segmentation set, generated: `mm2onnx synthetic coco --out data/toy_coco`."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_codec

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, write_json
from mmdeploy_ext.synthetic import staging
from mmdeploy_ext.synthetic.scene import CLASSES, Instance, make_scene

WORLD = 1
"""Version of the pictures."""
TRAIN_IMAGES, VAL_IMAGES = 800, 100
"""Pictures of the two parts if no other number is asked for."""
SIZES = ((256, 256), (240, 320), (320, 240), (256, 320), (192, 256), (320, 320))
"""Height and width (H, W) of pictures, pixels."""
SIZE_SHARES = (0.4, 0.15, 0.15, 0.1, 0.1, 0.1)
"""Share of the pictures of each size."""
EMPTY_EVERY = 20
"""Every 20th picture (those of index 19, 39, ...) shows only ground."""
MAX_PROPOSALS = 9
"""Largest number of shapes that is drawn for a picture, to be tried; not all find room."""
JPEG_QUALITY = 92
"""Quality of the pictures, 0..100."""
SPLITS = ('train2017', 'val2017')
"""Parts of the set, and names of their folders of pictures."""
_STREAMS = {'train2017': 0, 'val2017': 1, 'picture': 2}
"""Split -> its number in the seeds of pictures: a seed is (seed of the set, this number, index)."""


def start_sample(
    seed: int, split: str, index: int, size: tuple[int, int] | None = None
) -> tuple[np.random.Generator, tuple[int, int], int]:
    """Return the generator after the first draws of a picture, (H, W) in pixels, and the number of shapes."""
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    drawn_size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    proposals = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(1, MAX_PROPOSALS + 1))
    return rng, size or drawn_size, proposals


def sample(
    seed: int, split: str, index: int, size: tuple[int, int] | None = None, proposals: int | None = None
) -> tuple[np.ndarray, list[Instance]]:
    """Make one picture, (H, W, 3) uint8 BGR, and its instances, front to back.

    `split` is `train2017`, `val2017`, or `picture` for pictures that are in neither; `size` (H, W) is one of
    `SIZES` by default; `proposals` shapes are tried, by default 1 to `MAX_PROPOSALS`, or 0.
    """
    rng, (height, width), drawn_proposals = start_sample(seed, split, index, size)
    return make_scene(rng, height, width, drawn_proposals if proposals is None else proposals)


def _write_image(folder: Path, seed: int, size: tuple[int, int] | None, index: int) -> dict[str, Any]:
    image, instances = sample(seed, folder.name, index, size)
    name = f'{index + 1:012d}.jpg'
    staging.write_jpeg(folder / name, image, JPEG_QUALITY)
    height, width = image.shape[:2]
    annotations = []
    for instance in instances:
        rle = mask_codec.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
        annotations.append(
            {
                'category_id': instance.label + 1,
                'iscrowd': 0,
                'area': int(mask_codec.area(rle)),
                'bbox': [float(value) for value in mask_codec.toBbox(rle)],
                'segmentation': {
                    'size': [int(side) for side in rle['size']],
                    'counts': rle['counts'].decode('ascii'),
                },
            }
        )
    entry = {'id': index + 1, 'file_name': name, 'height': height, 'width': width}
    return {'image': entry, 'annotations': annotations}


def _write_split(folder: Path, count: int, parameters: dict[str, Any]) -> Iterator[int]:
    folder.mkdir()
    records = []
    for index in range(count):
        records.append(_write_image(folder, parameters['seed'], parameters['size'], index))
        yield 1
    annotations = []
    for record in records:
        for annotation in record['annotations']:
            ids = {'id': len(annotations) + 1, 'image_id': record['image']['id']}
            annotations.append({**ids, **annotation})
    content = {
        'info': {'description': f'generated shapes, world {WORLD}', 'version': str(WORLD)},
        'licenses': [],
        'images': [record['image'] for record in records],
        'annotations': annotations,
        'categories': [
            {'id': i + 1, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(CLASSES)
        ],
    }
    write_json(folder.with_name('annotations') / f'instances_{folder.name}.json', content)


def _check(seed: int, counts: dict[str, int], size: tuple[int, int] | None) -> None:
    if seed < 0:
        raise UsageError(f'--seed: got {seed}, expected 0 or more')
    for option, count in counts.items():
        if count < 1:
            raise UsageError(f'{option}: got {count}, expected at least 1')
    if size is not None and min(size) < 64:
        raise UsageError(f'--size: got {size[0]} {size[1]}, expected at least 64 pixels each')


def ensure_toy_coco(
    root: str | os.PathLike[str] = 'data/toy_coco',
    *,
    seed: int = 0,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    size: tuple[int, int] | None = None,
    force: bool = False,
    quiet: bool = False,
) -> bool:
    """Make the set unless it exists already; return whether it was made.

    `size` (H, W) is the size of all pictures (None: a mix of `SIZES`).
    """
    _check(seed, {'--train-images': train_images, '--val-images': val_images}, size)
    root = Path(root)
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    parameters = {'world': WORLD, 'seed': seed, 'size': list(size) if size else None, **counts}

    def write(folder: Path) -> Iterator[int]:
        for split, count in counts.items():
            yield from _write_split(folder / split, count, parameters)

    return staging.make_set(root, parameters, write, train_images + val_images, force=force, quiet=quiet)


def run(args: argparse.Namespace) -> int:
    size = tuple(args.size) if args.size else None
    cli.check_minimums(args, shapes=0)
    if args.shapes is not None and not args.picture:
        raise UsageError(f'--shapes {args.shapes}: goes with --picture; the pictures of a set draw theirs')
    if args.picture:
        _check(args.seed, {}, size)
        if not args.picture.lower().endswith(('.jpg', '.jpeg')):
            raise UsageError(f'--picture {args.picture}: expected a .jpg file')
        with atomic_path(args.picture) as temporary:
            image, _ = sample(args.seed, 'picture', 0, size, args.shapes)
            staging.write_jpeg(temporary, image, JPEG_QUALITY)
        print(f'{args.picture}: written')
        return 0
    staging.make_pictures(args, ensure_toy_coco, size=size)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run` to a parser."""
    staging.add_pictures(parser, 'data/toy_coco', TRAIN_IMAGES, VAL_IMAGES)
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='one size (default: a mix)')
    text = 'write one picture of no split, not a set'
    cli.writes(parser.add_argument('--picture', metavar='FILE', help=text))
    parser.add_argument('--shapes', type=int, metavar='N', help='with --picture: shapes to try')
