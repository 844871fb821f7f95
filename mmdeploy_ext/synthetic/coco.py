"""A COCO-format instance segmentation set, generated: `mm2onnx synthetic coco --out data/toy_coco`.

Six shape classes with procedural fills on textured ground, occluding each other, at COCO's three sizes; some
pictures are empty. The layout is COCO's: `train2017/`, `val2017/`, `annotations/instances_*2017.json`, the
segmentations as compressed RLE of the visible pixels.

Every picture has a random stream of its own, seeded by (seed, split, index): equal parameters give equal
bytes, however often the run was interrupted. (Equal bytes also need the same builds of NumPy and OpenCV: JPEG
encoders and resampling differ in last bits between builds.)
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_codec

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.files import atomic_path, read_json, write_json
from mmdeploy_ext.synthetic import staging
from mmdeploy_ext.synthetic.scene import make_scene
from mmdeploy_ext.synthetic.shapes import CLASSES

WORLD = 1
"""Raise it when the same seed gives other pictures, so that sets of older code are found out."""
TRAIN_IMAGES, VAL_IMAGES = 800, 100
SIZES = ((256, 256), (240, 320), (320, 240), (256, 320), (192, 256), (320, 320))
SIZE_SHARES = (0.4, 0.15, 0.15, 0.1, 0.1, 0.1)
EMPTY_EVERY = 20
"""Each so many pictures one shows ground alone, also in the smallest sets."""
MAX_PROPOSALS = 9
JPEG_QUALITY = 92
SHARD = 50
"""Pictures after which a finished piece is kept across an interruption."""
SPLITS = ('train2017', 'val2017')
_STREAMS = {'train2017': 0, 'val2017': 1, 'picture': 2}


def start_of(
    seed: int, split: str, index: int, size: tuple[int, int] | None = None
) -> tuple[np.random.Generator, tuple[int, int], int]:
    """Return the stream of one picture after its first draws, its size, and how many shapes to try.

    See `sample` for the arguments.
    """
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    drawn_size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    drawn = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(1, MAX_PROPOSALS + 1))
    return rng, size or drawn_size, drawn


def sample(
    seed: int, split: str, index: int, size: tuple[int, int] | None = None, proposals: int | None = None
) -> tuple[np.ndarray, list]:
    """Make one picture of the world, (H, W, 3) uint8 BGR, and its `scene.Instance` list.

    Args:
        seed: Seed of the whole set.
        split: `train2017`, `val2017`, or `picture` for pictures that are in neither.
        index: Number of the picture in its split.
        size: (H, W) in pixels; None draws one of `SIZES`.
        proposals: Shapes to try; None draws 1 to `MAX_PROPOSALS`, or none for an empty picture.
    """
    rng, (height, width), drawn = start_of(seed, split, index, size)
    return make_scene(rng, height, width, drawn if proposals is None else proposals)


def _annotation(mask: np.ndarray, label: int) -> dict[str, Any]:
    rle = mask_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        'category_id': label + 1,
        'iscrowd': 0,
        'area': int(mask_codec.area(rle)),
        'bbox': [float(v) for v in mask_codec.toBbox(rle)],
        'segmentation': {'size': [int(v) for v in rle['size']], 'counts': rle['counts'].decode('ascii')},
    }


def _write_image(folder: Path, seed: int, size: tuple[int, int] | None, index: int) -> dict[str, Any]:
    image, instances = sample(seed, folder.name, index, size)
    name = f'{index + 1:012d}.jpg'
    staging.write_jpeg(folder / name, image, JPEG_QUALITY)
    height, width = image.shape[:2]
    return {
        'image': {'id': index + 1, 'file_name': name, 'height': height, 'width': width},
        'annotations': [_annotation(instance.mask, instance.label) for instance in instances],
    }


def _shard(folder: Path, start: int) -> Path:
    return folder.parent / staging.SHARDS / f'{folder.name}_{start:06d}.json'


def _write_split(folder: Path, count: int, parameters: dict[str, Any]) -> Iterator[int]:
    """Write the pictures of a split and its annotations by shards; yield how many more pictures are done."""
    folder.mkdir(exist_ok=True)
    for start in range(0, count, SHARD):
        shard = _shard(folder, start)
        indices = range(start, min(start + SHARD, count))
        if shard.is_file():
            yield len(indices)
            continue
        records = []
        for index in indices:
            records.append(_write_image(folder, parameters['seed'], parameters['size'], index))
            yield 1
        write_json(shard, records)


def _merge_shards(folder: Path, count: int) -> None:
    records = [record for start in range(0, count, SHARD) for record in read_json(_shard(folder, start))]
    pairs = ((record['image']['id'], own) for record in records for own in record['annotations'])
    annotations = [{'id': number, 'image_id': image, **own} for number, (image, own) in enumerate(pairs, 1)]
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
    """Make the set, unless it is there already.

    Args:
        root: Folder of the set; it is written atomically.
        seed: Decides on everything, together with the following three.
        train_images: Pictures in `train2017`.
        val_images: Pictures in `val2017`.
        size: (H, W) of all pictures; None mixes `SIZES`.
        force: Replace a generated set at `root`, whatever its parameters; nothing else is ever replaced.
        quiet: Show no progress bar.

    Returns:
        True when it was made, False when the same set was there.

    Raises:
        DataError: `root` holds something else, or a set with other parameters.
        UsageError: A parameter is out of its range.
    """
    _check(seed, {'--train-images': train_images, '--val-images': val_images}, size)
    root = Path(root)
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    parameters = {'world': WORLD, 'seed': seed, 'size': list(size) if size else None, **counts}

    def write(folder: Path) -> Iterator[int]:
        for split, count in counts.items():
            yield from _write_split(folder / split, count, parameters)
        for split, count in counts.items():
            _merge_shards(folder / split, count)

    return staging.make_set(root, parameters, write, train_images + val_images, force=force, quiet=quiet)


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    size = tuple(args.size) if args.size else None
    if args.picture:
        _check(args.seed, {}, size)
        with atomic_path(args.picture) as temporary:
            image, _ = sample(args.seed, 'picture', 0, size, args.shapes)
            staging.write_jpeg(temporary, image, JPEG_QUALITY)
        print(f'{args.picture}: written')
        return 0
    counts = dict(train_images=args.train_images, val_images=args.val_images)
    made = ensure_toy_coco(args.out, seed=args.seed, size=size, force=args.force, **counts)
    what = f'{args.train_images} training and {args.val_images} validation pictures made'
    print(f'{args.out}: {what if made else staging.THERE}')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run` to a parser."""
    staging.add_folder(parser, '--out', 'data/toy_coco')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--train-images', type=int, default=TRAIN_IMAGES, metavar='N')
    parser.add_argument('--val-images', type=int, default=VAL_IMAGES, metavar='M')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='one size (default: a mix)')
    parser.add_argument('--force', action='store_true', help='replace a generated set at --out')
    text = 'write one picture of no split, not a set'
    cli.writes(parser.add_argument('--picture', metavar='FILE', help=text))
    parser.add_argument('--shapes', type=int, metavar='N', help='with --picture: shapes to try')
    cli.add_debug_option(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set, or one picture of the same world."""
    parser = cli.ArgumentParser(prog='mm2onnx synthetic coco', description=__doc__.splitlines()[0])
    add_arguments(parser)
    return cli.run(run, parser, argv)


if __name__ == '__main__':
    raise SystemExit(main())
