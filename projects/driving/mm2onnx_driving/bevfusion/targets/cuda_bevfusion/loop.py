"""The files of CUDA-BEVFusion's contract from pictures and points to boxes, without that engine.

runtime = CudaBEVFusion('work_dirs/bevfusion')         # written with --contract cuda-bevfusion
detections = runtime.step(FusedFrame(points, images=images, calibration=matrices)).detections
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.bevfusion.facts import Coder
from mm2onnx_driving.bevfusion.runtime import FAMILY, FusionRuntime, checked_inputs, filter_boxes, suppress
from mm2onnx_driving.bevfusion.targets.cuda_bevfusion import geometry
from mm2onnx_driving.bevfusion.targets.cuda_bevfusion.pooling import pooled, tables_of
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from mmdeploy_ext.runtime.exported import check_finite, check_forms, files_by_name
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.preprocess.points import voxelise
from mmdeploy_ext.runtime.sparse import engine as sparse_engine
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm2onnx_driving.bevfusion.targets.cuda_bevfusion.pooling import Tables
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import FusedFrame
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph

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
        depth = geometry.depth_maps(points, frame.calibration, self.view.image_size)
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
        return tables_of(geometry.cells(calibration, self.view), self.view.count[:2])

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
