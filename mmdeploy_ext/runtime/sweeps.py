"""Sweeps of a folder or an infos file of mmdet3d. P points of D values. Needs numpy only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError, shortened
from mmdeploy_ext.runtime.infos import INFOS, find_file, past_sweeps, read_infos, seconds_of
from mmdeploy_ext.runtime.points import SWEEP_SUFFIXES, read_points
from mmdeploy_ext.runtime.preprocess.fusion import AGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mmdeploy_ext.runtime.preprocess.points import PointRule

    Voxelise = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


# Voxels of .npz files under various names. N voxels of C values. Needs numpy only.


FEATURES = re.compile(r'features(_f16|_f32)?')
COORDINATES = re.compile(r'(?:coordinates|coors|coords)(?:_b(xyz|zyx))?(?:_i16|_i32)?')
"""Names of coordinates, perhaps with their order."""
EXPECTED = (
    'expected an .npz with `features` (N, C) floats and `coordinates` (N, 4) integers: sample and three '
    'axes (also named coors or coords; coors_bxyz and coors_bzyx state the order)'
)


def read_voxels(path: str | Path, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C) float32 and coordinates (N, 4) int32, sample and axes, of one sweep, unchecked.

    Names: `features` (`_f16`, `_f32`); `coordinates`, `coors` or `coords` in the model's order, or in the
    order of `_bxyz` or `_bzyx` (`coords_bxyz_i16`).
    """
    try:
        arrays = load_arrays(path)
    except DataError as error:
        raise DataError(f'{error}; {EXPECTED}') from error
    features = arrays[_single_name(path, arrays, FEATURES, 'features')]
    name = _single_name(path, arrays, COORDINATES, 'coordinates')
    coordinates = arrays[name]
    fits = features.ndim == coordinates.ndim == 2 and len(features) == len(coordinates)
    kinds = features.dtype.kind in 'fiu' and coordinates.dtype.kind in 'iu'
    if not fits or not kinds or coordinates.shape[1] != 4:
        raise DataError(
            f'{path}: features {features.dtype} {features.shape} and coordinates {coordinates.dtype} '
            f'{coordinates.shape}; {EXPECTED}'
        )
    if coordinates.size and not 0 <= coordinates.min() <= coordinates.max() <= np.iinfo(np.int32).max:
        ends = f'{coordinates.min()} to {coordinates.max()}'
        raise DataError(f'{path}: {name} are {ends}, expected 0 to 2**31 - 1')
    if COORDINATES.fullmatch(name)[1] not in (None, order):
        coordinates = coordinates[:, [0, 3, 2, 1]]
    return features.astype(np.float32), np.ascontiguousarray(coordinates, np.int32)


def _single_name(
    path: str | Path, arrays: dict[str, np.ndarray], pattern: re.Pattern[str], title: str
) -> str:
    names = [name for name in arrays if pattern.fullmatch(name)]
    if len(names) != 1:
        got = f'{title} under {" and ".join(names)}' if names else f'no {title}'
        raise DataError(f'{path}: has {got}; {EXPECTED}')
    return names[0]


ENDINGS = (*SWEEP_SUFFIXES, '.npz')
KEY_FRAMES = Path('samples/LIDAR_TOP')
"""Folder, below the data set, of sweeps that infos name without one."""


class Sweeps:
    """Voxels of each sweep of a source, read one at a time; `items` are paths or infos.

    Args:
        source: file or folder of `read_points`, or of .npz (`read_voxels`), or infos.
        voxelise: points (P, D) float32 -> (features, coordinates).
        limit: number of sweeps, spread evenly; 0: all.
        order: axes of the graph's coordinates.
    """

    def __init__(
        self,
        source: str | Path,
        voxelise: Voxelise,
        rule: PointRule,
        root: str | Path | None = None,
        limit: int = 0,
        order: str = 'xyz',
    ) -> None:
        self.source = Path(source)
        self.voxelise, self.rule, self.root, self.order = voxelise, rule, root, order
        self.items = evenly(sweep_items(self.source), limit)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for item in self.items:
            if isinstance(item, Path) and item.suffix == '.npz':
                yield read_voxels(item, self.order)
            else:
                yield self.voxelise(self.points(item))

    def name(self, item: Path | Mapping[str, Any]) -> str:
        return item.name if isinstance(item, Path) else Path(_lidar_path(item, self.source)).name

    def points(self, item: Path | Mapping[str, Any]) -> np.ndarray:
        if isinstance(item, Path):
            return np.ascontiguousarray(self._load(item)[:, list(self.rule.use_dim)])
        return self._merged_points(item)

    def _merged_points(self, info: Mapping[str, Any]) -> np.ndarray:
        rule, place = self.rule, f'{self.source}: {self.name(info)}'
        points = self._load(self._find(_lidar_path(info, self.source)))[:, list(rule.use_dim)]
        if not rule.past:
            return np.ascontiguousarray(points)
        if points.shape[1] <= AGE:
            raise DataError(
                f'{self.source}: points of {points.shape[1]} values have no column for the time lag; set '
                'use_dim=5 in LoadPointsFromFile'
            )
        merged = rule.past.merge(
            points.copy(),
            past_sweeps(info, place),
            seconds_of(info, place),
            lambda name: self._load(self._find(name))[:, list(rule.use_dim)].copy(),
        )
        return np.ascontiguousarray(merged[:, list(rule.past_dim or range(points.shape[1]))])

    def _load(self, path: Path) -> np.ndarray:
        return read_points(path, self.rule.load_dim)

    def _find(self, name: str) -> Path:
        # infos of mmdet3d 1.x name files alone, their folder is in the config
        return find_file(name, self.source, self.root, 'sweep', KEY_FRAMES)


def sweep_items(source: str | Path) -> list[Any]:
    source = Path(source)
    if source.is_file() and source.suffix not in INFOS:
        return [source]
    if not source.is_dir():
        return read_infos(source)
    paths = sorted(path for path in source.iterdir() if path.suffix in ENDINGS and path.is_file())
    if not paths:
        raise DataError(f'{source}: has no sweep; expected files that end in {", ".join(ENDINGS)}')
    return paths


def evenly(items: list[Any], limit: int) -> list[Any]:
    """At most `limit` items, evenly spread; 0 uses all."""
    if limit <= 0 or limit >= len(items):
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _lidar_path(info: Mapping[str, Any], source: Path) -> str:
    for outer, inner in (('lidar_points', 'lidar_path'), ('point_cloud', 'velodyne_path')):
        if isinstance(info.get(outer), dict) and inner in info[outer]:
            return str(info[outer][inner])
    if 'lidar_path' not in info:
        raise DataError(
            f'{source}: an info has no lidar_path; got {shortened(list(info))}, expected infos of mmdet3d'
        )
    return str(info['lidar_path'])
