"""A generated drive in nuScenes' format: `python -m projects.toydata.nuscenes --root data/toy_nuscenes`.

A car with six cameras and a LiDAR drives over a plane among boxes of the ten detection classes, each class
with a hue and a pattern of its own; boxes hide each other, cameras drop out for single key frames. Version
`v1.0-trainval`, all tables of the devkit, scene names from its own train and val lists.

Every scene has random streams of its own, seeded by (seed, scene name): equal parameters give equal bytes,
however often the run was interrupted and with however many processes it ran. (Equal bytes also need the same
builds of NumPy and OpenCV.)
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import Progress

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import DataError, UsageError
from mmdeploy_ext.core.files import read_json, write_json
from projects.toydata import nuscenes_tables as tables
from projects.toydata import staging
from projects.toydata.nuscenes_rig import CAMERAS, LIDAR
from projects.toydata.nuscenes_scene import Plan, write_scene

WORLD = 2
"""Raise it when the same seed gives other pictures, so that sets of older code are found out."""
VERSION = 'v1.0-trainval'
MAP_CELL_M = 0.1
ROAD_M = 16.0
_SHARDS = 'shards'


@dataclass(frozen=True)
class Options:
    """The parameters of a set.

    `image_size` is (W, H) in px, `sweeps` counts LiDAR sweeps between two key frames, `drop_share` is the
    chance that a good camera drops out in the next key frame.
    """

    train_scenes: int = 32
    val_scenes: int = 5
    frames: int = 24
    seed: int = 0
    image_size: tuple[int, int] = (352, 198)
    sweeps: int = 0
    drop_share: float = 0.25


def _check(options: Options) -> None:
    for name, least in (('train_scenes', 1), ('val_scenes', 1), ('frames', 2), ('seed', 0), ('sweeps', 0)):
        if getattr(options, name) < least:
            raise UsageError(
                f'--{name.replace("_", "-")}: got {getattr(options, name)}, expected {least} or more'
            )
    if min(options.image_size) < 32:
        raise UsageError(
            '--image-size: got {} {}, expected at least 32 pixels each'.format(*options.image_size)
        )
    if not 0 <= options.drop_share <= 1:
        raise UsageError(f'--drop-share: got {options.drop_share}, expected 0 to 1')


def plans(options: Options) -> list[Plan]:
    """Plan the scenes of a set, training scenes first.

    Raises:
        UsageError: More scenes are asked for than the devkit has names.
    """
    from nuscenes.utils import splits

    found = []
    for option, names, count in (
        ('--train-scenes', splits.train, options.train_scenes),
        ('--val-scenes', splits.val, options.val_scenes),
    ):
        if count > len(names):
            raise UsageError(f'{option}: got {count}, expected at most {len(names)}, as many as nuScenes has')
        found += names[:count]
    return [
        Plan(
            name,
            number,
            options.seed,
            options.frames,
            tuple(options.image_size),
            options.sweeps,
            options.drop_share,
        )
        for number, name in enumerate(found)
    ]


def _shard(root: Path, plan: Plan) -> Path:
    return root / _SHARDS / f'{plan.name}.json'


def _write_shard(root: Path, plan: Plan) -> None:
    if not _shard(root, plan).is_file():
        write_json(_shard(root, plan), write_scene(root, plan))


def _write_scenes(root: Path, todo: list[Plan], jobs: int) -> Iterator[None]:
    """Write scenes, each a piece that is kept across an interruption; yield after each."""
    for channel in (*CAMERAS, LIDAR):
        for folder in ('samples', 'sweeps'):
            (root / folder / channel).mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        for plan in todo:
            yield _write_shard(root, plan)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context('spawn')) as pool:
        try:
            for job in as_completed([pool.submit(_write_shard, root, plan) for plan in todo]):
                yield job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_map(path: Path, poses: list[tables.Record]) -> None:
    """Draw where the car drove, 16 m wide, white on black, 0.1 m a pixel, the origin at the lower left."""
    places = np.array([pose['translation'][:2] for pose in poses])
    columns, rows = (np.ceil((places.max(0) + 2 * ROAD_M) / MAP_CELL_M)).astype(int)
    mask = np.zeros((rows, columns), np.uint8)
    for x, y in places:
        cv2.circle(
            mask,
            (round(x / MAP_CELL_M), rows - round(y / MAP_CELL_M)),
            round(ROAD_M / 2 / MAP_CELL_M),
            255,
            cv2.FILLED,
        )
    path.parent.mkdir(exist_ok=True)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    if not cv2.imwrite(str(path), mask, options):
        raise DataError(f'{path}: OpenCV could not write the map mask')


def _maps(
    root: Path, merged: dict[str, list[tables.Record]], poses: dict[str, list[tables.Record]]
) -> list[tables.Record]:
    """Write a mask per location; `poses` are the ego poses per log token."""
    records = []
    for location in sorted({log['location'] for log in merged['log']}):
        logs = [log['token'] for log in merged['log'] if log['location'] == location]
        key = tables.token('map', location)
        _write_map(root / 'maps' / f'{key}.png', [pose for log in logs for pose in poses[log]])
        records.append(
            {'token': key, 'category': 'semantic_prior', 'filename': f'maps/{key}.png', 'log_tokens': logs}
        )
    return records


def _merge(root: Path, todo: list[Plan]) -> None:
    """Put the tables of the scenes together."""
    merged, poses = tables.fixed_tables(), {}
    for plan in todo:
        records = read_json(_shard(root, plan))
        poses[records['log'][0]['token']] = records['ego_pose']
        for name, rows in records.items():
            merged.setdefault(name, []).extend(rows)
    merged['map'] = _maps(root, merged, poses)
    for name, rows in merged.items():
        write_json(root / VERSION / f'{name}.json', rows)


def ensure_toy_nuscenes(
    root: str | os.PathLike[str] = 'data/toy_nuscenes',
    options: Options | None = None,
    *,
    jobs: int = 2,
    force: bool = False,
    quiet: bool = False,
) -> bool:
    """Make the set, unless it is there already.

    Args:
        root: Folder of the set; it is written atomically.
        options: What decides on its content.
        jobs: Processes that write scenes; 1 writes them in this one.
        force: Replace a generated set at `root`, whatever its parameters; nothing else is ever replaced.
        quiet: Show no progress bar.

    Returns:
        True when it was made, False when the same set was there.

    Raises:
        DataError: `root` holds something else, or a set with other parameters.
        UsageError: A parameter is out of its range.
    """
    options = options or Options()
    _check(options)
    if jobs < 1:
        raise UsageError(f'--jobs: got {jobs}, expected 1 or more')
    root, todo = Path(root), plans(options)
    parameters: dict[str, Any] = {'world': WORLD, **asdict(options), 'image_size': list(options.image_size)}
    with staging.locked(root):
        if force:
            staging.check_replaceable(root)
        elif staging.is_ready(root, parameters):
            return False
        folder = staging.open_staging(root, parameters)
        with Progress(console=cli.stderr(), disable=quiet) as progress:
            task = progress.add_task(f'making {root}', total=len(todo))
            for _ in _write_scenes(folder, todo, jobs):
                progress.advance(task)
        _merge(folder, todo)
        shutil.rmtree(folder / _SHARDS)
        staging.publish(root, parameters)
    return True


def _body(args: argparse.Namespace) -> int:
    options = Options(
        args.train_scenes,
        args.val_scenes,
        args.frames,
        args.seed,
        tuple(args.image_size),
        args.sweeps,
        args.drop_share,
    )
    made = ensure_toy_nuscenes(args.root, options, jobs=args.jobs, force=args.force)
    if made:
        print(
            f'{args.root}: {args.train_scenes} training and {args.val_scenes} validation scenes of '
            f'{args.frames} key frames made'
        )
    else:
        print(f'{args.root}: already there with the same parameters, nothing to do')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set."""
    default = Options()
    parser = cli.ArgumentParser(
        prog='python -m projects.toydata.nuscenes', description=__doc__.splitlines()[0]
    )
    cli.writes(
        parser.add_argument(
            '--root', default='data/toy_nuscenes', help='folder of the set (default: %(default)s)'
        ),
        '',
    )
    parser.add_argument('--train-scenes', type=int, default=default.train_scenes, metavar='N')
    parser.add_argument('--val-scenes', type=int, default=default.val_scenes, metavar='N')
    parser.add_argument(
        '--frames', type=int, default=default.frames, metavar='N', help='key frames per scene'
    )
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument('--image-size', type=int, nargs=2, default=default.image_size, metavar=('W', 'H'))
    parser.add_argument(
        '--sweeps',
        type=int,
        default=default.sweeps,
        metavar='N',
        help='LiDAR sweeps between two key frames (default: %(default)s)',
    )
    parser.add_argument(
        '--drop-share',
        type=float,
        default=default.drop_share,
        metavar='P',
        help='chance that a good camera is dark or dazzled next (default: %(default)s)',
    )
    parser.add_argument('--jobs', type=int, default=2, metavar='N', help='processes (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a generated set at --root')
    cli.add_debug_option(parser)
    return cli.run(_body, parser, argv)


if __name__ == '__main__':
    raise SystemExit(main())
