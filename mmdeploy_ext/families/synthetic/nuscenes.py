"""A generated drive in nuScenes' format: `mm2onnx synthetic nuscenes --out data/toy_nuscenes`."""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.files import write_json
from mmdeploy_ext.families.synthetic import staging
from mmdeploy_ext.families.synthetic.nuscenes_scene import (
    MAX_FRAMES,
    Record,
    ScenePlan,
    SetOptions,
    fixed_tables,
    token,
    write_scene,
)
from mmdeploy_ext.families.synthetic.nuscenes_sensors import CAMERAS, LIDAR

WORLD = 2
"""Version of the generator; raise it with the files' content: older sets are refused then."""
VERSION = 'v1.0-trainval'
"""Folder of the tables."""
OPTIONS = (
    ('--train-scenes', 'N', None),
    ('--val-scenes', 'N', None),
    ('--frames', 'N', 'key frames per scene'),
    ('--seed', None, None),
    ('--image-size', ('W', 'H'), None),
    ('--sweeps', 'N', 'LiDAR sweeps between two key frames (default: %(default)s)'),
    (
        '--drop-share',
        'P',
        'probability that a camera becomes dark or overexposed in a key frame (default: %(default)s)',
    ),
)
"""Name, metavar and help of the options, in the order of `SetOptions`."""


def check_options(options: SetOptions) -> None:
    minima = dict(train_scenes=1, val_scenes=1, frames=2, seed=0, sweeps=0)
    for name, minimum in minima.items():
        if getattr(options, name) < minimum:
            raise UsageError(
                f'--{name.replace("_", "-")}: got {getattr(options, name)}, expected {minimum} or more'
            )
    if options.frames > MAX_FRAMES:
        raise UsageError(f'--frames: got {options.frames}, expected at most {MAX_FRAMES}, ten minutes')
    width, height = options.image_size
    if min(width, height) < 32:
        raise UsageError(f'--image-size: got {width} {height}, expected at least 32 pixels each')
    if not 0 <= options.drop_share <= 1:
        raise UsageError(f'--drop-share: got {options.drop_share}, expected 0 to 1')


def plans(options: SetOptions) -> list[ScenePlan]:
    """Return the plans of all scenes, training first; UsageError: nuScenes has fewer names."""
    from nuscenes.utils import splits

    scene_names = []
    for option, names, count in (
        ('--train-scenes', splits.train, options.train_scenes),
        ('--val-scenes', splits.val, options.val_scenes),
    ):
        if count > len(names):
            raise UsageError(f'{option}: got {count}, expected at most {len(names)}, as many as nuScenes has')
        scene_names += names[:count]
    return [ScenePlan(**vars(options), name=name, number=number) for number, name in enumerate(scene_names)]


def _write_scenes(root: Path, scene_plans: list[ScenePlan], jobs: int) -> Iterator[dict[str, list[Record]]]:
    for channel in (*CAMERAS, LIDAR):
        for folder in ('samples', 'sweeps'):
            (root / folder / channel).mkdir(parents=True)
    if jobs == 1:
        yield from (write_scene(root, plan) for plan in scene_plans)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context('spawn')) as pool:
        yield from pool.map(write_scene, [root] * len(scene_plans), scene_plans)


def _write_tables(root: Path, scenes: list[dict[str, list[Record]]]) -> None:
    tables = fixed_tables()
    for scene in scenes:
        for name, records in scene.items():
            tables.setdefault(name, []).extend(records)
    key = token('map')
    name = f'maps/{key}.png'  # the devkit wants a mask of each map; nothing reads this one
    (root / 'maps').mkdir()
    cv2.imwrite(str(root / name), np.full((1, 1), 255, np.uint8))
    logs = [log['token'] for log in tables['log']]
    tables['map'] = [dict(token=key, category='semantic_prior', filename=name, log_tokens=logs)]
    for name, records in tables.items():
        write_json(root / VERSION / f'{name}.json', records)


def ensure_toy_nuscenes(
    root: str | os.PathLike[str] = 'data/toy_nuscenes',
    options: SetOptions | None = None,
    *,
    jobs: int = 2,
    force: bool = False,
    quiet: bool = False,
) -> bool:
    options = options or SetOptions()
    check_options(options)
    if jobs < 1:
        raise UsageError(f'--jobs: got {jobs}, expected 1 or more')
    root, scene_plans = Path(root), plans(options)
    parameters = {'world': WORLD, **asdict(options), 'image_size': list(options.image_size)}

    def write(folder: Path) -> Iterator[int]:
        scenes = []
        for tables in _write_scenes(folder, scene_plans, jobs):
            scenes.append(tables)
            yield 1
        _write_tables(folder, scenes)

    return staging.make_set(root, parameters, write, len(scene_plans), force=force, quiet=quiet)


def run(args: argparse.Namespace) -> int:
    args.image_size = tuple(args.image_size)
    options = SetOptions(**{field.name: getattr(args, field.name) for field in fields(SetOptions)})
    was_made = ensure_toy_nuscenes(args.out, options, jobs=args.jobs, force=args.force)
    scenes = f'{args.train_scenes} training and {args.val_scenes} validation scenes'
    print(f'{args.out}: {f"{scenes} of {args.frames} key frames made" if was_made else staging.EXISTS}')
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    staging.add_folder(parser, 'data/toy_nuscenes')
    for (name, metavar, text), field in zip(OPTIONS, fields(SetOptions), strict=True):
        value = (
            dict(type=int, nargs=2) if isinstance(field.default, tuple) else dict(type=type(field.default))
        )
        parser.add_argument(name, default=field.default, metavar=metavar, help=text, **value)
    parser.add_argument('--jobs', type=int, default=2, metavar='N', help='processes (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a generated data set at --out')
