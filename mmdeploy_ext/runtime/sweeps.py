"""Sweeps of a folder or an infos file of mmdet3d. P points of D values. Needs numpy only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, shortened
from mmdeploy_ext.runtime.infos import INFOS, find_file, past_sweeps, read_infos, seconds_of
from mmdeploy_ext.runtime.points import SWEEP_SUFFIXES, read_points
from mmdeploy_ext.runtime.preprocess.fusion import AGE
from mmdeploy_ext.runtime.voxel_files import read_voxels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mmdeploy_ext.runtime.preprocess.points import PointRule

    Voxelise = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

ENDINGS = (*SWEEP_SUFFIXES, '.npz')
KEY_FRAMES = Path('samples/LIDAR_TOP')
"""Folder, below the data set, of sweeps that infos name without one."""


class Sweeps:
    """Voxels of each sweep of a source, read one at a time; `items` are paths or infos.

    Args:
        source: file or folder of `read_points`, or of .npz (`runtime.voxel_files`), or infos.
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
