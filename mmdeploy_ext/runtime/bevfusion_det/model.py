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

from mmdeploy_ext.contract.metadata import Metadata, read_props
from mmdeploy_ext.core.errors import InferenceError
from mmdeploy_ext.engines import BACKENDS, build_backend, build_exact
from mmdeploy_ext.runtime.bevfusion_det.cuda import DENSE, CudaBEVFusion
from mmdeploy_ext.runtime.bevfusion_det.frames import FAMILY, checked, in_lidar_columns, spread_out
from mmdeploy_ext.runtime.bevfusion_det.moments import Detecting
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.exported import check_same_export, export_files
from mmdeploy_ext.runtime.frames import StepResult
from mmdeploy_ext.runtime.scn.model import ScnOnnx
from mmdeploy_ext.sparse.buckets import BEV

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.frames import FusedFrame

GRAPHS = ('rig', 'depth', 'lidar', 'frame')
"""Files of one export, by their `form`."""
EXACT = ('rig', 'depth')
"""Of them those that compute in float64, and what falls into a cell or pixel."""


class BEVFusionOnnx(Detecting):
    """An exported BEVFusion: a `Stepper` of fused frames, without a memory.

    The cells of a rig are computed when its calibration is another than that of the frame before.

    Attributes:
        metadata: of the frame's file.
        seconds: spent so far by part: `rig`, `depth`, `lidar` (voxels, rulebook and network), `frame`.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], *, engine: str = 'OnnxRuntimeBackend', **options: Any
    ) -> None:
        """Open the files.

        Args:
            paths: the folder of an export, or its files: `rig` with cameras, `depth` where they have depth
                maps, `lidar` with one, `frame`.
            engine: registered name of the backend.
            options: of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, of another model family, or not of the same export.
            EngineError: the engine is not here.
        """
        files = {path.stem: path for path in self._files(paths)}
        shared = {**BACKENDS[engine].shared, **options}
        self.sessions = {
            name: (build_exact if name in EXACT else build_backend)(engine, str(path), **shared)
            for name, path in files.items()
            if name != 'lidar'
        }
        for session in self.sessions.values():
            session.activate()
        self.metadata = self.sessions['frame'].metadata
        known = {name: session.metadata for name, session in self.sessions.items()}
        self.lidar = None
        if 'lidar' in files:
            self.lidar = ScnOnnx(files['lidar'], engine=engine, **options)
            known['lidar'] = Metadata.from_props(self.lidar.props, files['lidar'])
        for name, metadata in known.items():
            metadata.require(files[name], FAMILY, (name,))
        check_same_export({files[name]: metadata for name, metadata in known.items()})
        self.seconds = dict.fromkeys(files, 0.0)
        exact = [name for file in EXACT if file in known for name in known[file].spec.output_names]
        self._between = (*exact, BEV)
        self._rig: tuple[bytes, dict[str, np.ndarray]] | None = None

    @staticmethod
    def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
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
        """Detect in one moment of all sensors.

        Raises:
            ShapeError: pictures or matrices of other shapes.
            DataError: points or matrices that cannot be.
            InferenceError: the engine failed or gave NaN.
        """
        given = self._before_frame(frame)
        start = time.perf_counter()
        outputs = self._infer('frame', given)
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise InferenceError(f'{frame.name or "frame"}: the network gave NaN or infinity')
        self.passed('frame', start)
        boxes = spread_out(detections(outputs), self.metadata.postprocess['nms'])
        kept = {name: given[name] for name in self._between if name in given}
        return StepResult({**kept, **outputs}, boxes)

    def feeds(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        """Return what the frame's graph takes of a frame; raises what `step` raises."""
        given = self._before_frame(frame)
        return {name: given[name] for name in self.metadata.spec.input_names}

    def _before_frame(self, frame: FusedFrame) -> dict[str, np.ndarray]:
        """Return the frame's tensors, and what the other files give of them."""
        points, images = checked(frame, self.rule)
        given, start = dict(frame.calibration, img=images, points=frame.points[:, :3]), time.perf_counter()
        if images is not None:
            given |= self._tables_of(frame.calibration)
            start = self.passed('rig', start)
        if 'depth' in self.sessions:
            given |= self._infer('depth', given)
            start = self.passed('depth', start)
        if points is not None:
            given[BEV] = self.lidar.step(points=points)
            self.passed('lidar', start)
        return given

    def _infer(self, name: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self.sessions[name]
        return session.infer({key: given[key] for key in session.metadata.spec.input_names})

    def _tables_of(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = self.sessions['rig'].metadata.spec.input_names
        key = b''.join(np.ascontiguousarray(given[name], np.float32).tobytes() for name in names)
        if self._rig is None or self._rig[0] != key:
            self._rig = key, self._infer('rig', given)
        return self._rig[1]

    def close(self) -> None:
        """Close the sessions."""
        if self.lidar is not None:
            self.lidar.close()
        for session in self.sessions.values():
            session.deactivate()


def detections(outputs: Mapping[str, np.ndarray]) -> Detections3D:
    """Return what the frame's file found, best first; boxes out of range have no label."""
    labels = outputs['labels']
    rows = np.flatnonzero(labels >= 0)
    rows = rows[np.argsort(-outputs['scores'][rows], kind='stable')]
    return Detections3D(
        in_lidar_columns(outputs['boxes'][rows]), outputs['scores'][rows], labels[rows].astype(np.int64)
    )


def is_cuda(paths: str | Path | Sequence[str | Path]) -> bool:
    """Return whether files, or those of a folder, are of CUDA-BEVFusion's contract."""
    inside = isinstance(paths, str | Path)
    files = [Path(paths) / f'{DENSE[0]}.onnx'] if inside else [Path(path) for path in paths]
    return any(file.name == f'{DENSE[0]}.onnx' and (not inside or file.is_file()) for file in files)


def opened(paths: str | Path | Sequence[str | Path], **options: Any) -> BEVFusionOnnx | CudaBEVFusion:
    """Open an export of either contract; see the classes."""
    return (CudaBEVFusion if is_cuda(paths) else BEVFusionOnnx)(paths, **options)


OPENS, QUANTISED = opened, 'frame'
