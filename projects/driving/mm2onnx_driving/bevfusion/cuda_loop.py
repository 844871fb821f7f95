"""The files of CUDA-BEVFusion's contract from pictures and points to boxes, without that engine.

runtime = CudaBEVFusion('work_dirs/bevfusion')         # written with --contract cuda-bevfusion
detections = runtime.step(FusedFrame(points, images=images, calibration=matrices)).detections
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.bevfusion.runtime import (
    FAMILY,
    Coder,
    FusionRuntime,
    checked_inputs,
    filter_boxes,
    suppress,
)
from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError, ModelFileError
from mmdeploy_ext.base.files import atomic_path
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from mmdeploy_ext.runtime.exported import check_finite, check_forms, files_by_name, model_files
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.preprocess.points import voxelise
from mmdeploy_ext.runtime.sparse import engine as sparse_engine
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from mm2onnx_driving.bevfusion.runtime import ViewFacts
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import FusedFrame
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph


# Cells of the frustum's points, and LiDAR depth maps, which have no graph in this contract.
#
# Glossary: N cameras, H, W pictures of the network, D depth bins, h, w cells of a feature map, X, Y cells of
# the bird's-eye view, P points.


NEAREST, FARTHEST = 1e-5, 1e5
"""Limits of depths in metres; points behind a camera get the first."""


def cells(calibration: Mapping[str, np.ndarray], view: ViewFacts) -> np.ndarray:
    """Return the cell `x * Y + y` of each point of the frustum, X * Y outside: (N, D, h, w) int64.

    `calibration`: matrices by name; `view`: frustum and grid, float32.
    """
    aug, camera, lidar, intrinsics = (
        calibration[name].astype(np.float64)
        for name in ('img_aug_matrix', 'camera2lidar', 'lidar_aug_matrix', 'camera_intrinsics')
    )
    depth, y, x = np.meshgrid(*map(np.float32, (view.depths, view.rows, view.columns)), indexing='ij')
    points = np.stack([x, y, depth], -1).astype(np.float64)
    pixels_to_lidar = camera[:, :3, :3] @ np.linalg.inv(intrinsics[:, :3, :3])
    corner = np.float32(view.centre) - np.float32(view.step) / np.float32(2)
    frustum_cells = np.empty((len(aug), *points.shape[:3]), np.int64)
    for index, matrix in enumerate(pixels_to_lidar):
        pixels = (points - aug[index, :3, 3]) @ np.linalg.inv(aug[index, :3, :3]).T
        pixels[..., :2] *= pixels[..., 2:]
        points_in_lidar = pixels @ matrix.T + camera[index, :3, 3]
        frustum_cells[index] = cell_numbers(points_in_lidar @ lidar[:3, :3].T + lidar[:3, 3], view, corner)
    return frustum_cells


def cell_numbers(points: np.ndarray, view: ViewFacts, corner: np.ndarray) -> np.ndarray:
    """Return the cells (...) int64 of points (..., 3), rounded to float32; `corner` (3,); metres."""
    x, y = view.count[:2]
    points = points.astype(np.float32).astype(np.float64)
    cell = np.trunc((points - corner.astype(np.float64)) / np.float32(view.step).astype(np.float64))
    inside = ((cell >= 0) & (cell < (x, y, 1))).all(-1)
    return np.where(inside, cell[..., 0] * y + cell[..., 1], x * y).astype(np.int64)


def depth_maps(
    points: np.ndarray, calibration: Mapping[str, np.ndarray], size: tuple[int, int]
) -> np.ndarray:
    """Return depth maps (N, 1, H, W) float32: depths of the LiDAR's points in metres, else 0.

    Args:
        points: (P, 3 or more), x, y, z first, in the augmented LiDAR frame, metres.
        calibration: matrices by name.
        size: (H, W) of the network's pictures.
    """
    lidar2image, img_aug, aug = (
        calibration[name].astype(np.float64) for name in ('lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
    )
    unaugmented = np.linalg.inv(aug[:3, :3]) @ (points[:, :3].astype(np.float64) - aug[:3, 3]).T
    maps = np.zeros((len(lidar2image), 1, *size), np.float32)
    for map_of_camera, projection, aug_2d in zip(maps[:, 0], lidar2image, img_aug, strict=True):
        projected = projection[:3, :3] @ unaugmented + projection[:3, 3:]
        depth = projected[2].clip(NEAREST, FARTHEST)
        pixels = aug_2d[:3, :3] @ np.stack([*(projected[:2] / depth), depth]) + aug_2d[:3, 3:]
        x, y, _ = pixels.astype(np.float32)
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
        # numpy assigns in order: the last point of a pixel counts
        map_of_camera[y[inside].astype(np.int64), x[inside].astype(np.int64)] = depth[inside]
    return maps


# View pooling outside the graphs, as CUDA-BEVFusion does it: tables of a rig, and sums over their intervals.
#
# Glossary: N cameras, D depth bins, h, w cells of a feature map, T = N D h w points, X, Y cells of the
# bird's-eye view, C channels, n intervals.


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


DENSE = ('camera.backbone', 'camera.vtransform', 'fuser', 'head.bbox')
"""Graphs in ordinary ONNX."""
SPARSE = ('lidar.backbone.xyz', 'lidar.backbone.zyx')
GRAPHS = (*DENSE[:3], *SPARSE, DENSE[3])
"""The `form` of each file; the last one's outputs are decoded."""
DEPTH, POOLED, CELLS = 'depth', 'feat_in', 'cells'
"""Tensors that are computed between the files."""
OTHER_ORDER, UNROUNDED = 'lidar (z, y, x)', 'lidar, weights of the checkpoint'
"""Further LiDAR maps with `to_compare`."""


class CudaBEVFusion(FusionRuntime):
    """The files of CUDA-BEVFusion: a `runtime.frames.Stepper` of fused frames, without a memory.

    Attributes:
        seconds: time by file or 'pooling'; depth maps count for 'camera.backbone', voxels for the first
            sparse file, a calibration's tables for 'pooling'.
        view: how pictures are lifted into the bird's-eye view.
        sparse: sparse file -> graph; the second only with `to_compare`.
        sessions: ordinary file -> session.
        metadata: of the last file.
        tables: of the last calibration, or None.
    """

    def __init__(
        self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', to_compare: bool = False, **options: Any
    ) -> None:
        from mmdeploy_ext.exporting.sparse.libspconv import read

        super().__init__()
        files = files_by_name(paths, GRAPHS)
        metadata = {name: read_metadata(path) for name, path in files.items()}
        check_forms(files, metadata, FAMILY)
        self.metadata = metadata[GRAPHS[-1]]
        self.sessions = {name: self.opened(engine, files[name], options) for name in DENSE}
        orders = SPARSE if to_compare else SPARSE[:1]
        self.sparse: dict[str, SparseGraph] = {name: read(files[name]) for name in orders}
        self.view = self.metadata.postprocess.view
        self.seconds = dict.fromkeys((*GRAPHS, 'pooling'), 0.0)
        self.tables: Tables | None = None

    def step(self, frame: FusedFrame) -> StepResult:
        """Detect in one moment of all sensors; outputs include the tensors between the files.

        `frame` has points, prepared pictures (float32), and `MATRICES` (N, 4, 4), `lidar_aug_matrix` (4, 4),
        see `FusedFrame`.
        """
        points, images = checked_inputs(frame, self.rule)
        start = time.perf_counter()
        depth = depth_maps(points, frame.calibration, self.view.image_size)
        outputs = self._run('camera.backbone', img=images[None], depth=depth[None])
        start = self.passed('camera.backbone', start)
        self.tables = self.of_rig(frame.calibration, MATRICES, self._tables)
        cells = pooled(outputs['camera_feature'], outputs['camera_depth_weights'], self.tables)
        start = self.passed('pooling', start)
        outputs |= self._run('camera.vtransform', feat_in=cells)
        start = self.passed('camera.vtransform', start)
        maps = self._lidar_maps(points)
        start = time.perf_counter()  # the maps have been counted for the sparse files
        outputs |= self._run('fuser', camera=outputs['feat_out'], lidar=next(iter(maps.values())))
        start = self.passed('fuser', start)
        outputs |= self._run('head.bbox', middle=outputs['middle'])
        check_finite(outputs, frame.name or 'frame')
        self.passed('head.bbox', start)
        cell_indices = self.tables.geometry.astype(np.int64).reshape(outputs['camera_depth_weights'].shape)
        between = {DEPTH: depth, POOLED: cells, CELLS: cell_indices}
        return StepResult({**between, **maps, **outputs}, self.boxes_of(outputs))

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the head's outputs, best first, without suppression."""
        facts = self.metadata.postprocess
        return suppress(detections(outputs, facts.coder), facts.nms)

    def _run(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        return dict(self.sessions[name].infer(feeds))

    def _tables(self, calibration: Mapping[str, np.ndarray]) -> Tables:
        return tables_of(cells(calibration, self.view), self.view.count[:2])

    def _lidar_maps(self, points: np.ndarray) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        features, coordinates = voxelise(points, self.rule.voxels)
        if not len(features):
            raise DataError('points: none is in the range of the model; check frame and unit')
        maps = {}
        for name, graph in self.sparse.items():
            ordered = coordinates if graph.order == self.rule.voxels.order else coordinates[:, [0, 3, 2, 1]]
            key = OTHER_ORDER if maps else graph.output
            maps[key] = sparse_engine.run(graph, ordered, features)
            start = self.passed(name, start)
        return {**maps, UNROUNDED: next(iter(maps.values()))} if len(maps) > 1 else maps


def detections(outputs: Mapping[str, np.ndarray], coder: Coder) -> Detections3D:
    """Return the boxes of the head's outputs, best first, without suppression; at most one per query.

    The outputs are `score` (1, K, Q) in 0..1, `rot` (1, 2, Q) sine and cosine of the yaw, from -y clockwise
    as seen from above, `dim` (1, 3, Q) logarithms of width, length and height in metres, `reg` (1, 2, Q) x, y
    of the centre in cells from the map's corner, `height` (1, 1, Q) z of the centre in metres, `vel` (1, 2,
    Q) in m/s. See `Detections3D` and `in_lidar_columns`.

    `coder` (metadata's `postprocess`): `voxel_size` and `pc_range` in metres, `out_size_factor` in voxels per
    cell, and `post_center_range` and `score_threshold`, see `filter_boxes`.

    Source: mit-han-lab/bevfusion db75150, core/bbox/coders/transfusion_bbox_coder.py.
    """
    best = outputs['score'][0]
    labels, scores = best.argmax(0), best.max(0)
    step = np.float32(coder.voxel_size[:2]) * np.float32(coder.out_size_factor)
    place = outputs['reg'][0] * step[:, None] + np.float32(coder.pc_range[:2])[:, None]
    size = np.exp(outputs['dim'][0])
    bottom = outputs['height'][0] - size[2:] * np.float32(0.5)
    yaw = np.arctan2(outputs['rot'][0, :1], outputs['rot'][0, 1:])
    boxes = np.concatenate([place, bottom, size, yaw, outputs['vel'][0]]).T
    return filter_boxes(in_lidar_columns(boxes), scores, labels, coder)
