"""BEVFusion from pictures and points to boxes: cells of the rig, depth maps, sparse backbone, and frame.

runtime = BEVFusionOnnx('work_dirs/bevfusion')         # the folder that pytorch2onnx.py wrote detections =
runtime.step(FusedFrame(points, images=images, calibration=matrices)).detections
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.bevfusion.runtime.boxes import suppress
from mm2onnx_driving.bevfusion.runtime.frames import FAMILY, FusionRuntime, checked_inputs
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.engines import build_backend, build_exact
from mmdeploy_ext.runtime.detections3d import Detections3D, in_lidar_columns
from mmdeploy_ext.runtime.exported import check_finite, check_forms, export_files
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.sparse.buckets import BEV
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.metadata import Metadata, read_metadata

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import FusedFrame

GRAPHS = ('rig', 'depth', 'lidar', 'frame')
EXACT = ('rig', 'depth')


class BEVFusionOnnx(FusionRuntime):
    """An exported BEVFusion: a `Stepper` of fused frames, without a memory.

    Attributes:
        sessions: file -> session, without `lidar`, a `ScnOnnx`.
        metadata: metadata of the file `frame`.
        seconds: time spent so far by part: `rig`, `depth`, `lidar` (voxels, rulebook and network), `frame`.
    """

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        super().__init__()
        files = self._files(paths)
        self.sessions = {
            name: self.opened(engine, path, options, build_exact if name in EXACT else build_backend)
            for name, path in files.items()
            if name != 'lidar'
        }
        self.metadata = self.sessions['frame'].metadata
        metadata = {name: session.metadata for name, session in self.sessions.items()}
        if 'lidar' in files:
            self.lidar = self.enter_context(ScnOnnx(files['lidar'], engine=engine, **options))
            metadata['lidar'] = Metadata.from_props(self.lidar.props, files['lidar'])
        check_forms(files, metadata, FAMILY)
        self.seconds = dict.fromkeys(files, 0.0)
        exact_outputs = [
            name for file in EXACT if file in metadata for name in metadata[file].spec.output_names
        ]
        self._between = (*exact_outputs, BEV)

    @staticmethod
    def _files(paths: Paths) -> dict[str, Path]:
        files = export_files(paths, GRAPHS[-1:])
        last = next((path for path in files if path.stem == GRAPHS[-1]), None)
        if last is None:
            raise ModelFileError(f'{", ".join(map(str, files))}: got no {GRAPHS[-1]}.onnx of an export')
        metadata = read_metadata(last)
        metadata.require(last, FAMILY, GRAPHS[-1:])
        facts = metadata.postprocess
        needed = dict(rig='camera' in facts.sensors, depth='depth' in metadata.spec.input_names)
        needed |= dict(lidar='lidar' in facts.sensors, frame=True)
        names = [name for name in GRAPHS if needed[name]]
        if isinstance(paths, str | Path) and Path(paths).is_dir():
            files = export_files(paths, names)
        by_name = {path.stem: path for path in files}
        if not by_name.keys() >= set(names) or len(by_name) < len(files):
            needed_files = ', '.join(f'{name}.onnx' for name in names)
            raise ModelFileError(
                f'{", ".join(map(str, files))}: expected {needed_files} of one export, each once'
            )
        return by_name

    def step(self, frame: FusedFrame) -> StepResult:
        tensors = self._tensors_before_frame(frame)
        start = time.perf_counter()
        outputs = self._infer('frame', tensors)
        check_finite(outputs, frame.name or 'frame')
        self.passed('frame', start)
        between = {name: tensors[name] for name in self._between if name in tensors}
        return StepResult({**between, **outputs}, self.boxes_of(outputs))

    def boxes_of(self, outputs: Arrays) -> Detections3D:
        return boxes_of_outputs(self.metadata, outputs)

    def feeds(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        tensors = self._tensors_before_frame(frame)
        return {name: tensors[name] for name in self.metadata.spec.input_names}

    def _tensors_before_frame(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        points, images = checked_inputs(frame, self.rule)
        tensors, start = dict(frame.calibration, img=images), time.perf_counter()
        if points is not None:
            tensors['points'] = points[:, :3]
        if images is not None:
            names = self.sessions['rig'].metadata.spec.input_names
            tensors |= self.of_rig(frame.calibration, names, lambda matrices: self._infer('rig', matrices))
            start = self.passed('rig', start)
        if 'depth' in self.sessions:
            tensors |= self._infer('depth', tensors)
            start = self.passed('depth', start)
        if points is not None:
            tensors[BEV] = self.lidar.step(points=points)
            self.passed('lidar', start)
        return tensors

    def _infer(self, name: str, tensors: Arrays) -> dict[str, np.ndarray]:
        session = self.sessions[name]
        return session.infer({key: tensors[key] for key in session.metadata.spec.input_names})


def detections(outputs: Arrays) -> Detections3D:
    """Return the frame file's boxes, best first, without label -1 (out of range or low score).

    `boxes` are (Q, 9) in columns of mmdet3d 0.x.
    """
    boxes, labels = in_lidar_columns(outputs['boxes']), outputs['labels'].astype(np.int64)
    return Detections3D(boxes, outputs['scores'], labels)[labels >= 0].best_first()


def boxes_of_outputs(metadata: Metadata, outputs: Arrays) -> Detections3D:
    return suppress(detections(outputs), metadata.postprocess.nms)


OPENS, QUANTISED = BEVFusionOnnx, 'frame'
