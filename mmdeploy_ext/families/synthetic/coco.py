"""A COCO-format set, generated: `mm2onnx synthetic coco --out data/toy_coco`, and `panoptic` beside it."""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import read_json, write_json
from mmdeploy_ext.families.synthetic import staging
from mmdeploy_ext.families.synthetic.scene import CLASSES, PATTERNS, Instance, colour_pair, layout, make_scene
from mmdeploy_ext.runtime.detections import bounding_box
from mmdeploy_ext.upstream.compat.panoptic_quality import id2rgb

WORLD = 1
"""Version of the pictures."""
TRAIN_IMAGES, VAL_IMAGES = 800, 100
SIZES = ((256, 256), (240, 320), (320, 240), (256, 320), (192, 256), (320, 320))
"""Height and width (H, W) of pictures, pixels."""
SIZE_SHARES = (0.4, 0.15, 0.15, 0.1, 0.1, 0.1)
"""Share of pictures of each size."""
EMPTY_EVERY = 20
"""Every 20th picture shows only ground."""
MAX_PROPOSALS = 9
"""Most tried shapes of a picture."""
JPEG_QUALITY = 92
SPLITS = ('train2017', 'val2017')
"""Parts of the set, and their folders of pictures."""
_STREAMS = {'train2017': 0, 'val2017': 1, 'picture': 2}
"""Split -> number in seeds (seed of the set, number, index)."""
STUFF = tuple(pattern.__name__.strip('_') for pattern in PATTERNS)
"""Classes of the ground, with labels behind the shapes'."""


def start_sample(
    seed: int, split: str, index: int, size: tuple[int, int] | None = None
) -> tuple[np.random.Generator, tuple[int, int], int]:
    """Return the generator after a picture's first draws, (H, W) in pixels, and the number of shapes."""
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    drawn_size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    proposals = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(1, MAX_PROPOSALS + 1))
    return rng, size or drawn_size, proposals


def sample(
    seed: int, split: str, index: int, size: tuple[int, int] | None = None, proposals: int | None = None
) -> tuple[np.ndarray, list[Instance]]:
    """Make one picture, (H, W, 3) uint8 BGR, and its instances, front to back.

    `split` is `train2017`, `val2017`, or `picture` for neither; `size` (H, W) defaults to one of `SIZES`,
    `proposals` (tried shapes) to 1 to `MAX_PROPOSALS`, or 0.
    """
    rng, (height, width), drawn_proposals = start_sample(seed, split, index, size)
    return make_scene(rng, height, width, drawn_proposals if proposals is None else proposals)


def _annotation(instance: Instance) -> dict[str, Any]:
    from pycocotools import mask as mask_codec

    rle = mask_codec.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
    return {
        'category_id': instance.label + 1,
        'iscrowd': 0,
        'area': int(mask_codec.area(rle)),
        'bbox': [float(value) for value in mask_codec.toBbox(rle)],
        'segmentation': {'size': list(map(int, rle['size'])), 'counts': rle['counts'].decode('ascii')},
    }


def _write_split(folder: Path, count: int, seed: int, size: tuple[int, int] | None) -> Iterator[int]:
    folder.mkdir()
    images, annotations = [], []
    for index in range(count):
        image, instances = sample(seed, folder.name, index, size)
        name = f'{index + 1:012d}.jpg'
        staging.write_jpeg(folder / name, image, JPEG_QUALITY)
        images.append(dict(id=index + 1, file_name=name, height=image.shape[0], width=image.shape[1]))
        for instance in instances:
            ids = dict(id=len(annotations) + 1, image_id=index + 1)
            annotations.append(ids | _annotation(instance))
        yield 1
    categories = [dict(id=i + 1, name=name, supercategory='shape') for i, name in enumerate(CLASSES)]
    content = {
        'info': {'description': f'generated shapes, world {WORLD}', 'version': str(WORLD)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': categories,
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
    """Make the set unless it exists; return whether it was made. `size` (H, W) None: a mix of `SIZES`."""
    _check(seed, {'--train-images': train_images, '--val-images': val_images}, size)
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    parameters = {'world': WORLD, 'seed': seed, 'size': list(size) if size else None, **counts}

    def write(folder: Path) -> Iterator[int]:
        for split, count in counts.items():
            yield from _write_split(folder / split, count, seed, size)

    return staging.make_set(Path(root), parameters, write, sum(counts.values()), force=force, quiet=quiet)


def run(args: argparse.Namespace) -> int:
    size = tuple(args.size) if args.size else None
    counts = dict(train_images=args.train_images, val_images=args.val_images)
    was_made = ensure_toy_coco(args.out, seed=args.seed, size=size, force=args.force, **counts)
    pictures = f'{args.train_images} training and {args.val_images} validation images written'
    print(f'{args.out}: {pictures if was_made else staging.EXISTS}')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    staging.add_folder(parser, 'data/toy_coco')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train-images', type=int, default=TRAIN_IMAGES, metavar='N')
    parser.add_argument('--val-images', type=int, default=VAL_IMAGES, metavar='M')
    parser.add_argument('--force', action='store_true', help='replace a generated data set at --out')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='one size (default: a mix)')


# ---------------------------------------------------------------- panoptic annotations


def ground_and_shapes(
    seed: int, split: str, index: int, size: tuple[int, int] | None
) -> tuple[int, list[Instance], tuple[int, int]]:
    """Return the ground (index into `STUFF`), the shapes, front to back, and (H, W)."""
    rng, (height, width), proposals = start_sample(seed, split, index, size)
    shapes = layout(rng, height, width, proposals)
    colour_pair(rng, (0.1, 0.45))
    return int(rng.integers(len(PATTERNS))), shapes, (height, width)


def segments_of(
    ground: int, shapes: Sequence[Instance], size: tuple[int, int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the segments (H, W) int64 of a picture and their entries in COCO's JSON.

    An entry has `id`, `category_id` (`CLASSES` from 1 on, then `STUFF`), `iscrowd`, `area` in pixels and
    `bbox` x y w h.
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


def _write_panoptic(folder: Path, split: str, parameters: dict[str, Any]) -> dict[str, Any]:
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
    root = Path(root)
    if not (root / staging.MANIFEST).is_file():
        ensure_toy_coco(root, **parameters)
    set_parameters = read_json(root / staging.MANIFEST)['parameters']
    if set_parameters.get('world') != WORLD or not {'seed', 'size', *SPLITS} <= set_parameters.keys():
        raise DataError(f'{root}: is not a data set of `mm2onnx synthetic coco` of world {WORLD}; pass one')
    was_made = False
    with staging.locked(root):
        for split in SPLITS:
            target = root / 'annotations' / f'panoptic_{split}'
            if target.with_suffix('.json').is_file():
                continue
            shutil.rmtree(target, ignore_errors=True)
            write_json(target.with_suffix('.json'), _write_panoptic(target, split, set_parameters))
            was_made = True
    return was_made


def run_panoptic(args: argparse.Namespace) -> int:
    was_made = ensure_toy_panoptic(args.out)
    print(f'{args.out}: panoptic annotations {"made" if was_made else "already there, nothing to do"}')
    return 0


def add_panoptic_arguments(parser: argparse.ArgumentParser) -> None:
    staging.add_folder(parser, 'data/toy_coco')
