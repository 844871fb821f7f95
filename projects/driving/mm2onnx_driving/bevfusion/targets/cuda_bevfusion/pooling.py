"""View pooling outside the graphs, as CUDA-BEVFusion does it: tables of a rig, and sums over their intervals.

Glossary: N cameras, D depth bins, h, w cells of a feature map, T = N D h w points, X, Y cells of the
bird's-eye view, C channels, n intervals.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.bevfusion.runtime import FAMILY
from mm2onnx_driving.bevfusion.targets.cuda_bevfusion.geometry import cells
from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError, ModelFileError
from mmdeploy_ext.base.files import atomic_path
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.runtime.exported import model_files
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    import os


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables that assign points of the frustum to cells, in which they are added up.

    Attributes:
        geometry: (T,) int32 cell `x * Y + y` of each point; X * Y outside.
        ranks: (T,) int32 sort key of each point: its cell, or -1 outside.
        indices: (T,) uint32 sorted points, `camera * (D h w) + (d h + row) w + column`.
        intervals: (n, 3) int32: first index in `indices`, last plus one, cell.
        shape: (X, Y).
    """

    geometry: np.ndarray
    ranks: np.ndarray
    indices: np.ndarray
    intervals: np.ndarray
    shape: tuple[int, int]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the attributes to an .npz file, atomically."""
        with atomic_path(Path(path)) as temporary, temporary.open('wb') as stream:
            np.savez(stream, **dataclasses.asdict(self))


def tables_of(point_cells: np.ndarray, shape: tuple[int, int]) -> Tables:
    """Return the tables of the points' cells (N, D, h, w), see `geometry.cells`, on a grid of (X, Y).

    Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion/src/bevfusion/camera-geometry.cu:60-88 and
    218-265 (its behaviour, no code).
    """
    geometry = point_cells.reshape(-1).astype(np.int32)
    ranks = np.where(geometry < shape[0] * shape[1], geometry, np.int32(-1))
    indices = np.argsort(ranks, kind='stable')
    starts = np.flatnonzero(np.diff(ranks[indices], prepend=np.int32(-1)))
    ends = np.append(starts[1:], len(ranks))[: len(starts)]
    intervals = np.stack([starts, ends, geometry[indices[starts]]], 1).astype(np.int32)
    return Tables(geometry, ranks, indices.astype(np.uint32), intervals, tuple(shape))


def pooled(features: np.ndarray, weights: np.ndarray, tables: Tables) -> np.ndarray:
    """Return the sums (1, C, X, Y) float32 of weighted features in each cell, in the order of the points.

    Args:
        features: (N, h, w, C).
        weights: (N, D, h, w).
        tables: of the rig; DataError for another number of points.
    """
    from mmdeploy_ext.runtime.bev_loops import add_weighted_features

    if weights.size != len(tables.indices):
        raise DataError(
            f'the tables have {len(tables.indices)} points, but the network returned weights for '
            f'{weights.size}'
        )
    channels, pixels = features.shape[3], features.shape[1] * features.shape[2]
    sums = np.zeros((tables.shape[0] * tables.shape[1], channels), np.float32)
    rows = np.ascontiguousarray(features, np.float32).reshape(-1, channels)
    flat = np.ascontiguousarray(weights, np.float32).reshape(-1)
    add_weighted_features(rows, flat, tables.indices, tables.intervals, weights.shape[1], pixels, sums)
    return np.ascontiguousarray(sums.T).reshape(1, channels, *tables.shape)


def read_calibration(path: str | Path) -> dict[str, np.ndarray]:
    """Return the float32 `MATRICES` of an .npz file; `lidar_aug_matrix` defaults to a unit matrix."""
    try:
        stored = load_arrays(path)
        matrices = {name: stored[name].astype(np.float32) for name in MATRICES if name in stored}
    except ValueError as error:
        raise DataError(f'{path}: cannot be read; expected an .npz file of {", ".join(MATRICES)}') from error
    return {'lidar_aug_matrix': np.eye(4, dtype=np.float32), **matrices}


def write_tables(folder: str, calibration: str, output: str) -> dict[str, int]:
    """Write the tables of a rig to an .npz file; return the numbers of `points`, `intervals` and `dropped`.

    `folder` is the export's; for `calibration` see `read_calibration`.
    """
    path = model_files(folder)[0]
    metadata = read_metadata(path)
    metadata.require(path, FAMILY)
    if metadata.postprocess.view is None:
        raise ModelFileError(f'{path}: is a LiDAR-only model; expected an export with cameras')
    rig = read_calibration(calibration)
    check_calibration(rig, metadata.preprocess.views.num_cameras, calibration)
    view = metadata.postprocess.view
    point_cells = cells(rig, view)
    tables = tables_of(point_cells, view.count[:2])
    tables.save(output)
    return dict(
        points=point_cells.size,
        intervals=len(tables.intervals),
        dropped=int((tables.ranks < 0).sum()),
    )
