"""BEVFusion from pictures and points to boxes: cells of the rig, depth maps, sparse backbone, and frame.

    runtime = BEVFusionOnnx('work_dirs/bevfusion')         # the folder that pytorch2onnx.py wrote
    found = runtime.step(FusedFrame(points, images=images, calibration=matrices)).detections

Needs numpy, numba and ONNX Runtime, no PyTorch. Glossary: N cameras, P points, V values per point, Q queries.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.cuda_bevfusion.cuda import DENSE, CudaBEVFusion
from mmdeploy_ext.contract.metadata import Metadata, read_props
from mmdeploy_ext.engines import build_backend, build_exact
from mmdeploy_ext.families.bevfusion.runtime.frames import FAMILY, checked, in_lidar_columns, spread_out
from mmdeploy_ext.families.bevfusion.runtime.moments import Detecting
from mmdeploy_ext.families.parts.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.exported import check_finite, check_forms, export_files
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.sparse.buckets import BEV

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import FusedFrame

GRAPHS = ('rig', 'depth', 'lidar', 'frame')
"""Files of one export, by their `form`."""
EXACT = ('rig', 'depth')
"""Of them those that compute in float64, and what falls into a cell or pixel."""


class BEVFusionOnnx(Detecting):
    """An exported BEVFusion: a `Stepper` of fused frames, without a memory.

    The cells of a rig are computed when its calibration is another than that of the frame before.

    Attributes:
        seconds: spent so far by part: `rig`, `depth`, `lidar` (voxels, rulebook and network), `frame`.
    """

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the folder of an export, or its files; see `LidarOnnx`.

        They are `rig` with cameras, `depth` where they have depth maps, `lidar` with one, `frame`.
        """
        super().__init__()
        files = {path.stem: path for path in self._files(paths)}
        self.sessions = {
            name: self.opened(engine, path, options, build_exact if name in EXACT else build_backend)
            for name, path in files.items()
            if name != 'lidar'
        }
        self.metadata = self.sessions['frame'].metadata
        known = {name: session.metadata for name, session in self.sessions.items()}
        if 'lidar' in files:
            self.lidar = self.enter_context(ScnOnnx(files['lidar'], engine=engine, **options))
            known['lidar'] = Metadata.from_props(self.lidar.props, files['lidar'])
        check_forms(files, known, FAMILY)
        self.seconds = dict.fromkeys(files, 0.0)
        exact = [name for file in EXACT if file in known for name in known[file].spec.output_names]
        self._between = (*exact, BEV)

    @staticmethod
    def _files(paths: Paths) -> list[Path]:
        """Return the files of an export: those of the sensors that its last one says."""
        if not isinstance(paths, str | Path):
            return [Path(path) for path in paths]
        (last,) = export_files(paths, GRAPHS[-1:])
        metadata = Metadata.from_props(read_props(last), last)
        metadata.require(last, FAMILY, GRAPHS[-1:])
        facts = metadata.postprocess
        needed = dict(rig='camera' in facts['sensors'], depth='depth' in metadata.spec.input_names)
        needed |= dict(lidar='lidar' in facts['sensors'], frame=True)
        return export_files(paths, [name for name in GRAPHS if needed[name]])

    def step(self, frame: FusedFrame) -> StepResult:
        given = self._before_frame(frame)
        start = time.perf_counter()
        outputs = self._infer('frame', given)
        check_finite(outputs, frame.name or 'frame')
        self.passed('frame', start)
        kept = {name: given[name] for name in self._between if name in given}
        return StepResult({**kept, **outputs}, self.boxes_of(outputs))

    def boxes_of(self, outputs: Arrays) -> Detections3D:
        """Return what is left of the boxes of the frame's file, best first."""
        return spread_out(detections(outputs), self.metadata.postprocess['nms'])

    def feeds(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        """Return what the frame's graph takes of a frame; raises what `step` raises."""
        given = self._before_frame(frame)
        return {name: given[name] for name in self.metadata.spec.input_names}

    def _before_frame(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        """Return the frame's tensors, and what the other files give of them."""
        points, images = checked(frame, self.rule)
        given, start = dict(frame.calibration, img=images, points=frame.points[:, :3]), time.perf_counter()
        if images is not None:
            names = self.sessions['rig'].metadata.spec.input_names
            given |= self.of_rig(frame.calibration, names, lambda matrices: self._infer('rig', matrices))
            start = self.passed('rig', start)
        if 'depth' in self.sessions:
            given |= self._infer('depth', given)
            start = self.passed('depth', start)
        if points is not None:
            given[BEV] = self.lidar.step(points=points)
            self.passed('lidar', start)
        return given

    def _infer(self, name: str, given: Arrays) -> dict[str, np.ndarray]:
        session = self.sessions[name]
        return session.infer({key: given[key] for key in session.metadata.spec.input_names})


def detections(outputs: Arrays) -> Detections3D:
    """Return what the frame's file found, best first; boxes out of range have no label."""
    boxes, labels = in_lidar_columns(outputs['boxes']), outputs['labels'].astype(np.int64)
    return Detections3D(boxes, outputs['scores'], labels)[labels >= 0].best_first()


def is_cuda(paths: Paths) -> bool:
    """Return whether files, or those of a folder, are of CUDA-BEVFusion's contract."""
    inside = isinstance(paths, str | Path)
    files = [Path(paths) / f'{DENSE[0]}.onnx'] if inside else [Path(path) for path in paths]
    return any(file.name == f'{DENSE[0]}.onnx' and (not inside or file.is_file()) for file in files)


def opened(paths: Paths, **options: Any) -> BEVFusionOnnx | CudaBEVFusion:
    """Open an export of either contract; see the classes."""
    return (CudaBEVFusion if is_cuda(paths) else BEVFusionOnnx)(paths, **options)


OPENS, QUANTISED = opened, 'frame'
