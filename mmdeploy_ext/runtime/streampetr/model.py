"""StreamPETR as a stream: images, calibration, pose and time in, boxes out, memory kept between calls.

    runtime = StreamPetrOnnx('work_dirs/streampetr_r50')          # the folder that pytorch2onnx.py wrote
    calibration = runtime.rule.calibrate(intrinsics, lidar2cam)
    boxes = runtime.detect(images_bgr, calibration, ego_pose, timestamp_s)

Needs numpy, OpenCV and ONNX Runtime, no PyTorch. Glossary: N cameras, H, W network input in pixels.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError, EngineError, InferenceError, ModelFileError
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.runtime.autoware.streampetr import NodeContract
from mmdeploy_ext.runtime.autoware.streampetr_rules import FILES as NODE_GRAPHS
from mmdeploy_ext.runtime.exported import Opened, check_same_export, export_files
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.streampetr import checks
from mmdeploy_ext.runtime.streampetr.boxes import decode
from mmdeploy_ext.runtime.streampetr.deploy import GRAPHS, DeployContract
from mmdeploy_ext.runtime.streampetr.fork import ForkContract
from mmdeploy_ext.runtime.streampetr.state import Moment, check_tensors, relative_motion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.inputs.cameras import Calibration, MultiViewRule
    from mmdeploy_ext.runtime.detections3d import Detections3D

logger = logging.getLogger(__name__)
FAMILY = 'streampetr'
MAX_GAP_S = 2.0
"""Seconds; nuScenes' key frames are 0.5 s apart, and the memory of four of them is older than that."""


class StreamPetrOnnx(Opened):
    """An exported StreamPETR with its memory, on ONNX Runtime or OpenVINO: a `Stepper` of frames.

    Attributes:
        metadata: of the head's file.
        num_cameras: N.
        image_shape: (N, 3, H, W) of prepared images.
        max_gap_s: a longer gap between two frames empties the memory; None never does.
        was_reset: whether the memory was empty or emptied before the last frame.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        max_gap_s: float | None = MAX_GAP_S,
        engine: str = 'OnnxRuntimeBackend',
        **options: Any,
    ) -> None:
        """Open the files.

        Args:
            paths: the folder of a deploy or autoware export, its three files, or the one file of a
                fork export.
            max_gap_s: see the class. The published model knows no gap, so proofs pass None.
            engine: registered name of the backend; ONNX Runtime alone keeps the memory on its side.
            options: of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, of another model family, or not of the same export.
            EngineError: the engine is not here.
        """
        self._backends = open_files(paths, engine, options)
        if set(self._backends) == set(GRAPHS):
            self.contract: DeployContract | NodeContract | ForkContract = DeployContract(self._backends)
        elif set(self._backends) == set(NODE_GRAPHS):
            self.contract = NodeContract(self._backends)
        elif engine == 'OpenVinoBackend':
            # it drops an input that the graph needs, and is wrong from the second frame on (2026.4)
            path = next(iter(self._backends.values())).path
            raise EngineError(f'{path}: the fork contract does not run right in OpenVINO; export deploy')
        else:
            self.contract = ForkContract(next(iter(self._backends.values())))
        self.metadata = self.contract.metadata
        self.image_shape = self.contract.image_shape
        self.num_cameras = self.image_shape[0]
        self.max_gap_s = max_gap_s
        self.was_reset = False
        self._last: tuple[np.ndarray, float, str | None] | None = None

    @property
    def rule(self) -> MultiViewRule:
        """How images and calibration become the network input."""
        return self.metadata.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return self.metadata.classes

    @property
    def fed_bytes(self) -> int:
        """Bytes copied to the engine for the last frame, besides the images."""
        return self.contract.fed_bytes

    def detect(
        self,
        images_bgr: Sequence[np.ndarray],
        calibration: Calibration,
        ego_pose: np.ndarray,
        timestamp_s: float,
        scene_token: str | None = None,
    ) -> Detections3D:
        """Detect in the images of one moment.

        Args:
            images_bgr: N images (h, w, 3) uint8 as OpenCV reads them, in the order of `rule.cameras`.
            calibration: of `rule.calibrate`; give the same object or equal numbers while the rig is the same.
            ego_pose: (4, 4) float64, LiDAR frame to a global frame.
            timestamp_s: seconds, absolute or from any fixed point.
            scene_token: a change empties the memory; None says nothing about scenes.

        Returns:
            Boxes in the LiDAR frame of this moment.

        Raises:
            ShapeError: wrong number or size of images.
            DataError: an invalid calibration or pose, or time that runs backwards.
            InferenceError: the engine failed or gave NaN. The memory is then as it was before, or empty.
        """
        images = self.rule.apply(images_bgr)
        return self._run(images, calibration, ego_pose, None, timestamp_s, scene_token).detections

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame; raises what `detect` raises."""
        from mmdeploy_ext.inputs.cameras import Calibration

        calibration = None
        if frame.lidar2img is not None and frame.intrinsics is not None:
            calibration = Calibration(frame.lidar2img, frame.intrinsics)
        return self._run(
            frame.images,
            calibration,
            frame.ego_pose,
            frame.ego_pose_inv,
            frame.timestamp_s,
            frame.scene_token,
        )

    def graph_seconds(self) -> dict[str, float]:
        """Return the seconds that the engine spent in each part so far."""
        return {part: graph.seconds for part, graph in self.contract.graphs.items()}

    def reset(self) -> None:
        """Empty the memory; the next frame may have any time."""
        self._last = None

    @property
    def state(self) -> StreamState | None:
        """A copy of the memory after the last frame, None when it is empty; assign one to go on from it."""
        if self._last is None:
            return None
        pose, time, scene = self._last
        return StreamState(self.contract.read_state(pose, time), pose, time, scene or '')

    @state.setter
    def state(self, state: StreamState | None) -> None:
        if state is None:
            self.reset()
            return
        check_tensors(state.tensors, self.contract.state_shapes)
        pose, time = (
            checks.check_pose(state.ego_pose, 'state: ego_pose'),
            checks.check_time(state.timestamp_s),
        )
        self.contract.write_state(state.tensors, pose, time)
        self._last = pose, time, state.scene_token or None

    def close(self) -> None:
        """Close the sessions."""
        for backend in self._backends.values():
            backend.deactivate()

    def _run(
        self,
        images: np.ndarray,
        calibration: Calibration | None,
        ego_pose: np.ndarray,
        ego_pose_inv: np.ndarray | None,
        timestamp_s: float,
        scene_token: str | None,
    ) -> StepResult:
        images = checks.check_prepared(images, self.image_shape)
        calibration = checks.check_calibration(calibration, self.num_cameras)
        pose, time = checks.check_pose(ego_pose), checks.check_time(timestamp_s)
        if ego_pose_inv is not None:
            checks.check_pose(ego_pose_inv, 'ego_pose_inv')
        fresh = self._is_new_drive(time, scene_token)
        motion, gap = np.eye(4), 0.0
        if not fresh:
            motion, gap = relative_motion(self._last[0], pose), time - self._last[1]
        moment = Moment(pose, time, motion, gap, not fresh)
        outputs = self.contract.run(images, calibration, moment)
        if not all(np.isfinite(values[-1]).all() for values in outputs.values()):
            self.reset()
            raise InferenceError('the network gave NaN or infinity; the memory was emptied')
        scene = scene_token if scene_token is not None or fresh else self._last[2]
        self._last, self.was_reset = (pose, time, scene), fresh
        return StepResult(outputs, self.detections(outputs), fresh)

    def detections(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Decode `all_cls_scores` and `all_bbox_preds` of one frame."""
        return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], self.metadata.postprocess)

    def _is_new_drive(self, time: float, scene_token: str | None) -> bool:
        """Say whether the memory does not belong to this frame, and log why."""
        if self._last is None:
            return True
        _, last_time, last_scene = self._last
        if scene_token is not None and last_scene is not None and scene_token != last_scene:
            logger.info('memory reset: scene changed from %s to %s', last_scene, scene_token)
            return True
        if time < last_time:
            raise DataError(
                f'timestamp_s: got {time:.6f}, which is {last_time - time:.6f} s before the last frame of '
                f'the same scene; frames have to come in order: call reset() where a new drive begins'
            )
        if self.max_gap_s is not None and time - last_time > self.max_gap_s:
            logger.warning(
                'memory reset: %.3f s since the last frame, more than max_gap_s=%g',
                time - last_time,
                self.max_gap_s,
            )
            return True
        return False


def open_files(
    paths: str | Path | Sequence[str | Path], engine: str, options: Mapping[str, Any]
) -> dict[str, Backend]:
    """Open the files of one export.

    Returns:
        `form` -> active backend: the three of `GRAPHS` or of `NODE_GRAPHS`, or a single other one.

    Raises:
        ModelFileError: see `StreamPetrOnnx`.
    """
    names = GRAPHS
    if isinstance(paths, str | Path) and (Path(paths) / f'{NODE_GRAPHS[0]}.onnx').is_file():
        names = NODE_GRAPHS
    files = export_files(paths, names)
    backends: dict[str, Backend] = {}
    # three thread pools on the same cores: one that still spins slows the next one
    # (R50 on 2 cores: 1131 against 1101 ms per frame)
    defaults = BACKENDS[engine].shared
    for file in files:
        backend = build_backend(engine, str(file), **{**defaults, **options})
        backend.activate()
        backend.metadata.require(file, FAMILY)
        backends[backend.metadata.form] = backend
    if set(backends) in (set(GRAPHS), set(NODE_GRAPHS)):
        check_same_export({backend.path: backend.metadata for backend in backends.values()})
    elif len(files) != 1 or set(backends) & {*GRAPHS, *NODE_GRAPHS}:
        raise ModelFileError(
            f'{", ".join(map(str, files))}: got the graphs {", ".join(backends)}; '
            f'expected {", ".join(GRAPHS)} of one deploy export, or one fork file'
        )
    return backends


OPENS = StreamPetrOnnx
