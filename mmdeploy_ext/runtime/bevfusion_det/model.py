"""BEVFusion from pictures and points to boxes: cells of the rig, the sparse backbone, and the frame.

    runtime = BEVFusionOnnx('work_dirs/bevfusion')         # the folder that pytorch2onnx.py wrote
    found = runtime.step(FusedFrame(points, images=images, calibration=matrices)).detections

Needs numpy, numba and ONNX Runtime, no PyTorch. Glossary: N cameras, P points, V values per point, Q queries.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.core.errors import DataError, InferenceError, ShapeError
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.exported import Memoryless, check_same_export, export_files
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.runtime.points import check_in_range, check_points
from mmdeploy_ext.runtime.scn.model import ScnOnnx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.inputs.fusion import FusionRule

FAMILY = 'bevfusion_det'
GRAPHS = ('rig', 'lidar', 'frame')
"""Files of one export, by their `form`."""
MATRICES = 'camera_intrinsics', 'camera2lidar', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix'
"""Of a calibration, see `FusedFrame`."""
INVERTED = ('camera_intrinsics', 'img_aug_matrix', 'lidar_aug_matrix')


class BEVFusionOnnx(Memoryless):
    """An exported BEVFusion: a `Stepper` of fused frames, without a memory.

    The cells of a rig are computed when its calibration is another than that of the frame before.

    Attributes:
        metadata: of the frame's file.
        seconds: spent so far by part: `rig`, `lidar` (voxels, rulebook and network), `frame`.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], *, engine: str = 'OnnxRuntimeBackend', **options: Any
    ) -> None:
        """Open the files.

        Args:
            paths: the folder of an export, or its three files.
            engine: registered name of the backend.
            options: of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, of another model family, or not of the same export.
            EngineError: the engine is not here.
        """
        files = dict(zip(GRAPHS, export_files(paths, GRAPHS), strict=True))
        self.lidar = ScnOnnx(files['lidar'], engine=engine, **options)
        shared = {**BACKENDS[engine].shared, **options}
        self.rig, self.frame = (
            build_backend(engine, str(files[name]), **shared) for name in ('rig', 'frame')
        )
        self.rig.activate()
        self.frame.activate()
        self.metadata = self.frame.metadata
        known = dict(
            rig=self.rig.metadata,
            lidar=Metadata.from_props(self.lidar.props, files['lidar']),
            frame=self.metadata,
        )
        for name, metadata in known.items():
            metadata.require(files[name], FAMILY, (name,))
        check_same_export({files[name]: metadata for name, metadata in known.items()})
        self.seconds = dict.fromkeys(GRAPHS, 0.0)
        self._cells: tuple[bytes, np.ndarray] | None = None

    @property
    def rule(self) -> FusionRule:
        """How pictures and points become the input."""
        return self.metadata.preprocess

    @property
    def width(self) -> int:
        """V, values per point."""
        return int(self.rule.voxels.in_channels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.metadata.classes

    def step(self, frame: FusedFrame) -> StepResult:
        """Detect in one moment of all sensors.

        Raises:
            ShapeError: pictures or matrices of other shapes.
            DataError: points or matrices that cannot be.
            InferenceError: the engine failed or gave NaN.
        """
        points = check_points(frame.points, self.width, frame.name)
        check_in_range(points, self.rule.voxels.point_cloud_range, frame.name)
        check_calibration(frame.calibration, self.rule.views.num_cameras, frame.name)
        views = self.rule.views
        images = check_images(frame, views.input_size, views.num_cameras)
        given = dict(frame.calibration, img=images, points=points[:, :3])
        start = time.perf_counter()
        cells = self._cells_of(given)
        start = self.passed('rig', start)
        bev = self.lidar.step(points=points)
        start = self.passed('lidar', start)
        given.update(cells=cells, bev=bev)
        outputs = self.frame.infer({name: given[name] for name in self.metadata.spec.input_names})
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise InferenceError(f'{frame.name or "frame"}: the network gave NaN or infinity')
        self.passed('frame', start)
        return StepResult(dict(cells=cells, bev=bev, **outputs), detections(outputs))

    def _cells_of(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        feeds = {name: given[name] for name in self.rig.metadata.spec.input_names}
        key = b''.join(np.ascontiguousarray(feeds[name], np.float32).tobytes() for name in sorted(feeds))
        if self._cells is None or self._cells[0] != key:
            self._cells = key, self.rig.infer(feeds)['cells']
        return self._cells[1]

    def close(self) -> None:
        """Close the sessions."""
        self.lidar.close()
        self.rig.deactivate()
        self.frame.deactivate()


def detections(outputs: Mapping[str, np.ndarray]) -> Detections3D:
    """Return what the frame's file found, best first; boxes out of range have no label."""
    labels = outputs['labels']
    rows = np.flatnonzero(labels >= 0)
    rows = rows[np.argsort(-outputs['scores'][rows], kind='stable')]
    return Detections3D(outputs['boxes'][rows], outputs['scores'][rows], labels[rows].astype(np.int64))


def check_images(frame: FusedFrame, size: tuple[int, int], cameras: int = 0) -> np.ndarray:
    """Return the pictures of a frame (N, 3, H, W) float32, or refuse them.

    Args:
        frame: that has them.
        size: (H, W), pixels.
        cameras: N; 0 takes any number.

    Raises:
        ShapeError: none, or of another shape.
    """
    images = getattr(frame, 'images', None)
    wanted = (cameras or (len(images) if images is not None else 'N'), 3, *size)
    if images is None or images.shape != wanted:
        shape = 'there are none' if images is None else f'of shape {images.shape}'
        raise ShapeError(f'{frame.name or "frame"}: pictures of the cameras: {shape}; expected {wanted}')
    return np.ascontiguousarray(images, np.float32)


def check_calibration(matrices: Mapping[str, np.ndarray], cameras: int, name: str = '') -> None:
    """Refuse a calibration that cannot be.

    Raises:
        DataError: a matrix lacks, holds NaN, or has no inverse where one is needed.
        ShapeError: of another shape.
    """
    where = name or 'frame'
    for key in MATRICES:
        if key not in matrices:
            raise DataError(f'{where}: the calibration has no {key}')
        matrix, wanted = matrices[key], (4, 4) if key == 'lidar_aug_matrix' else (cameras, 4, 4)
        if matrix.shape != wanted:
            raise ShapeError(f'{where}: {key} is of shape {matrix.shape}, expected {wanted}')
        if not np.isfinite(matrix).all():
            raise DataError(f'{where}: {key} holds NaN or infinity; mend the calibration')
        square = matrix.reshape(-1, 4, 4)[:, :3, :3].astype(np.float64)
        singular = np.flatnonzero(np.abs(np.linalg.det(square)) < 1e-12)
        if key in INVERTED and len(singular):
            raise DataError(f'{where}: {key}: matrix {singular[0]} has no inverse; mend the calibration')


OPENS = BEVFusionOnnx
