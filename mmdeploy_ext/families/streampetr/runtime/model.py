"""StreamPETR as a stream: images, calibration, pose and time in, boxes out, memory kept between calls.

    runtime = StreamPetrOnnx('work_dirs/streampetr_r50')          # the folder that pytorch2onnx.py wrote
    calibration = runtime.rule.calibrate(intrinsics, lidar2cam)
    boxes = runtime.detect(images_bgr, calibration, ego_pose, timestamp_s)

Needs numpy, OpenCV and ONNX Runtime, no PyTorch.

Glossary: N cameras, H, W network input in pixels, h, w pictures as taken, L decoder layers, Q queries, K
classes, n boxes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.streampetr import NodeContract
from mmdeploy_ext.consumers.autoware.streampetr_rules import FILES as NODE_GRAPHS
from mmdeploy_ext.contract.metadata import damaged
from mmdeploy_ext.core.errors import DataError, EngineError, InferenceError, ModelFileError
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.parts.runtime.rig_frames import CameraRuntime
from mmdeploy_ext.families.parts.runtime.scores import sigmoid, top_rows
from mmdeploy_ext.families.streampetr.runtime.deploy import GRAPHS, DeployContract
from mmdeploy_ext.families.streampetr.runtime.fork import ForkContract
from mmdeploy_ext.families.streampetr.runtime.state import FrameMotion, check_tensors
from mmdeploy_ext.preprocess.cameras import Calibration
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range
from mmdeploy_ext.runtime.exported import check_same_export, export_files
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState, relative_motion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.runtime.exported import Paths

logger = logging.getLogger(__name__)
FAMILY = 'streampetr'
"""Name of the family in the metadata."""
MAX_GAP_S = 2.0
"""Seconds: the time of four key frames of nuScenes, which are 0.5 s apart."""


class StreamPetrOnnx(CameraRuntime):
    """An exported StreamPETR with its memory, on ONNX Runtime or OpenVINO: a `Stepper` of frames.

    Attributes:
        metadata: of the file that gives the boxes.
        contract: runs the files, and keeps the memory.
        num_cameras: N.
        image_shape: (N, 3, H, W) of prepared images.
        max_gap_s: a longer gap between two frames empties the memory; None never does.
        was_reset: whether the memory was empty or emptied before the last frame.
    """

    def __init__(
        self,
        paths: Paths,
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
        super().__init__()
        backends = self._open(paths, engine, options)
        if set(backends) == set(GRAPHS):
            self.contract: DeployContract | NodeContract | ForkContract = DeployContract(backends)
        elif set(backends) == set(NODE_GRAPHS):
            self.contract = NodeContract(backends)
        else:
            (backend,) = backends.values()
            if engine == 'OpenVinoBackend':
                # OpenVINO 2026.4 drops an input that the graph needs: wrong results from the second frame on
                raise EngineError(
                    f'{backend.path}: the fork contract does not run right in OpenVINO; export deploy'
                )
            self.contract = ForkContract(backend)
        self.metadata = self.contract.metadata
        self.image_shape = self.contract.image_shape
        self.num_cameras = self.image_shape[0]
        rule = self.metadata.preprocess
        prepared_shape = (rule.num_cameras, 3, *rule.input_size)
        if prepared_shape != self.image_shape:
            error = f'makes images of {prepared_shape}, the graph takes {self.image_shape}'
            raise damaged(', '.join(backend.path for backend in backends.values()), 'preprocess', error)
        self.max_gap_s = max_gap_s
        self.was_reset = False
        self._last: tuple[np.ndarray, float, str | None] | None = None  # pose, time and scene

    def _open(self, paths: Paths, engine: str, options: Mapping[str, Any]) -> dict[str, Backend]:
        """Return `form` -> backend: those of `GRAPHS` or of `NODE_GRAPHS`, or a single other one."""
        of_node = isinstance(paths, str | Path) and (Path(paths) / f'{NODE_GRAPHS[0]}.onnx').is_file()
        files = export_files(paths, NODE_GRAPHS if of_node else GRAPHS)
        backends: dict[str, Backend] = {}
        for file in files:
            backend = self.opened(engine, file, options)
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
        """Return the boxes in the images of one moment, in its LiDAR frame.

        Args:
            images_bgr: N images (h, w, 3) uint8 as OpenCV reads them, in the order of `rule.cameras`.
            calibration: of `rule.calibrate`; give the same object or equal numbers while the rig is the same.
            ego_pose: (4, 4) float64, LiDAR frame to a global frame.
            timestamp_s: seconds, absolute or from any fixed point.
            scene_token: a change empties the memory; None leaves the scene as it was.

        Raises:
            ShapeError: wrong number or size of images.
            DataError: an invalid calibration or pose, or a time before that of the last frame.
            InferenceError: the engine failed or gave NaN. The memory is then as it was before, or empty.
        """
        images, (lidar2img, intrinsics) = self.rule.apply(images_bgr), calibration or (None, None)
        return self.step(Frame(images, lidar2img, intrinsics, ego_pose, timestamp_s, scene_token)).detections

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame; raises what `detect` raises."""
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        calibration = None
        if frame.lidar2img is not None and frame.intrinsics is not None:
            calibration = Calibration(frame.lidar2img, frame.intrinsics)
        calibration = frame_checks.check_calibration(calibration, self.num_cameras)
        pose, time, scene = (
            frame_checks.check_pose(frame.ego_pose),
            frame_checks.check_time(frame.timestamp_s),
            None,
        )
        if frame.ego_pose_inv is not None:
            frame_checks.check_pose(frame.ego_pose_inv, 'ego_pose_inv')
        is_first = self._is_first_frame(time, frame.scene_token)
        motion, gap = np.eye(4), 0.0
        if not is_first:
            last_pose, last_time, scene = self._last
            motion, gap = relative_motion(last_pose, pose), time - last_time
        outputs = self.contract.run(images, calibration, FrameMotion(pose, time, motion, gap, not is_first))
        if not all(np.isfinite(values[-1]).all() for values in outputs.values()):
            self.reset()
            raise InferenceError('the network gave NaN or infinity; the memory was emptied')
        self._last = pose, time, scene if frame.scene_token is None else frame.scene_token
        self.was_reset = is_first
        return StepResult(outputs, self.boxes_of(outputs), is_first)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the head's outputs, best first; see `decode`."""
        return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], self.metadata.postprocess)

    def graph_seconds(self) -> dict[str, float]:
        """Return name of a part -> seconds that the engine spent in it so far."""
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
        pose = frame_checks.check_pose(state.ego_pose, 'state: ego_pose')
        time = frame_checks.check_time(state.timestamp_s)
        self.contract.write_state(state.tensors, pose, time)
        self._last = pose, time, state.scene_token or None

    def _is_first_frame(self, time: float, scene_token: str | None) -> bool:
        """Return whether a frame starts with an empty memory; log why the memory is emptied."""
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


def decode(cls_scores: np.ndarray, bbox_preds: np.ndarray, facts: Mapping[str, Any]) -> Detections3D:
    """Decode the outputs of one frame to boxes, best first, with z at the bottom.

    One query may give several boxes, and there is no NMS.

    Args:
        cls_scores: (L, 1, Q, K) logits; the last layer counts.
        bbox_preds: (L, 1, Q, 10): x, y, z centre in metres, three log sizes, sin and cos of the yaw, vx, vy.
        facts: the `postprocess` entry of the file's metadata: `max_num`, `post_center_range` (metres,
            ends included, for the centre) and `score_threshold` (None or 0 keeps all).

    Source: exiawsh/StreamPETR 95f6470, core/bbox/coders/nms_free_coder.py and streampetr_head.py
    `get_bboxes`.
    """
    scores = sigmoid(cls_scores[-1, 0]).reshape(-1)
    best = top_rows(scores, int(facts['max_num']))
    query, labels = np.divmod(best, cls_scores.shape[-1])
    scores, preds = scores[best], bbox_preds[-1, 0].astype(np.float32)[query]
    valid = in_range(preds, facts['post_center_range']) & (scores >= (facts.get('score_threshold') or 0.0))
    return Detections3D(boxes_of_predictions(preds), scores, labels.astype(np.int64))[valid]


def boxes_of_predictions(preds: np.ndarray) -> np.ndarray:
    """Return (n, 9) float32 boxes, z at the bottom, of (n, 10) predictions; see `decode`."""
    sizes = np.exp(preds[:, 3:6])
    centre = preds[:, :3].copy()
    centre[:, 2] -= sizes[:, 2] * np.float32(0.5)
    yaw = np.arctan2(preds[:, 6:7], preds[:, 7:8])
    return np.concatenate([centre, sizes, yaw, preds[:, 8:10]], axis=1).astype(np.float32)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    """Return the boxes of the head's outputs; see `mmdeploy_ext/runtime/family_runtime.py`."""
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess)


OPENS = StreamPetrOnnx
"""Class that opens an export, see `mmdeploy_ext/runtime/family_runtime.py`."""
