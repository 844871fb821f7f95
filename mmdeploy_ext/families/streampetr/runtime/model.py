"""StreamPETR as a stream: images, calibration, pose and time in, boxes out, memory kept between calls.

    runtime = StreamPetrOnnx('work_dirs/streampetr_r50')          # the folder that pytorch2onnx.py wrote
    calibration = runtime.rule.calibrate(intrinsics, lidar2cam)
    boxes = runtime.detect(images_bgr, calibration, ego_pose, timestamp_s)

Needs numpy, OpenCV, and ONNX Runtime or OpenVINO, no PyTorch.

Glossary: N cameras, H, W network input in pixels, h, w pictures as taken, L decoder layers in the outputs, Q
queries, K classes, n boxes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware.streampetr import NodeContract
from mmdeploy_ext.consumers.autoware.streampetr_rules import FILES as NODE_GRAPHS
from mmdeploy_ext.contract.metadata import damaged
from mmdeploy_ext.core.errors import DataError, EngineError, InferenceError, ModelFileError
from mmdeploy_ext.families.parts.runtime import frame_checks, query_boxes
from mmdeploy_ext.families.parts.runtime.rig_frames import CameraRuntime, scene_of
from mmdeploy_ext.families.streampetr.runtime.deploy import GRAPHS, DeployContract
from mmdeploy_ext.families.streampetr.runtime.fork import ForkContract
from mmdeploy_ext.families.streampetr.runtime.state import FrameMotion, check_tensors
from mmdeploy_ext.preprocess.cameras import Calibration
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.exported import check_same_export, export_files, names_in
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.geometry import relative_motion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.runtime.exported import Paths

FAMILY = 'streampetr'
"""Name of the family in the metadata."""
MAX_GAP_S = 2.0
"""Seconds: the time of four key frames of nuScenes, which are 0.5 s apart."""


class StreamPetrOnnx(CameraRuntime):
    """An exported StreamPETR with its memory, on ONNX Runtime or OpenVINO: a `Stepper` of frames.

    For `detect` see `CameraRuntime`.

    Attributes:
        metadata: metadata of the file that gives the boxes.
        contract: runs the files, and keeps the memory.
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
            paths: the folder of an export with the contract 'deploy' or 'autoware' (three files of other
                names), its three files in any order, or the one file of a fork export.
            max_gap_s: a longer gap between two frames begins a scene; None never does, as in the published
                model, so proofs pass it.
            engine: registered name of the backend. With ONNX Runtime the memory stays in the engine's buffers
                between frames, with others it is copied.
            options: options of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, there twice, of another model family, or not of the same
                export, or its preprocessing makes images of another shape than the graph takes.
            EngineError: the engine is not installed; or a fork file is to run on OpenVINO, which runs it
                wrongly.
            ConfigError: no such engine, or one without these options.
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
        rule = self.metadata.preprocess
        prepared_shape = (rule.num_cameras, 3, *rule.input_size)
        if prepared_shape != self.image_shape:
            error = f'makes images of {prepared_shape}, the graph takes {self.image_shape}'
            raise damaged(', '.join(backend.path for backend in backends.values()), 'preprocess', error)
        self.max_gap_s = max_gap_s
        self.reset()

    def _open(self, paths: Paths, engine: str, options: Mapping[str, Any]) -> dict[str, Backend]:
        """Return `form` -> backend: those of `GRAPHS` or of `NODE_GRAPHS`, or a single other one."""
        files = export_files(paths, names_in(paths, GRAPHS, NODE_GRAPHS))
        backends = self.opened_by_form(files, engine, options, [FAMILY])
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
        """Bytes copied to the engine for the last frame, besides the images.

        Of an export with the contract 'autoware' they are those of all inputs of the last file, the head. The
        memory and features that an engine other than ONNX Runtime copies for 'deploy' are not counted.
        """
        return self.contract.fed_bytes

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame; return `all_cls_scores` and `all_bbox_preds` (see `decode`), and the boxes.

        The former are those of all decoder layers; of files with `--layers last` or the contract 'autoware'
        of the last one alone (L is 1).

        Raises:
            ShapeError: images of another number, size or dtype than float32.
            DataError: an invalid calibration, pose or time, or a time before that of the last frame of the
                same scene.
            InferenceError: the engine failed, which leaves the memory as it was (that of 'autoware' may be
                zero if the frame begins a scene), or gave NaN or infinity in the last decoder layer, after
                which the memory is empty.
        """
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        calibration = None
        if frame.lidar2img is not None and frame.intrinsics is not None:
            calibration = Calibration(frame.lidar2img, frame.intrinsics)
        calibration = frame_checks.check_calibration(calibration, self.num_cameras)
        pose, time = frame_checks.check_pose(frame.ego_pose), frame_checks.check_time(frame.timestamp_s)
        if frame.ego_pose_inv is not None:
            frame_checks.check_pose(frame.ego_pose_inv, 'ego_pose_inv')
        last, motion, gap = self._last, np.eye(4), 0.0
        is_first = self.begins_scene(last, time, frame.scene_token)
        if not is_first:
            motion, gap = relative_motion(last.ego_pose, pose), time - last.timestamp_s
        if gap < 0:
            raise DataError(
                f'timestamp_s: got {time:.6f}, which is {-gap:.6f} s before the last frame of the same '
                f'scene; frames have to come in order: call reset() where a new drive begins'
            )
        outputs = self.contract.run(images, calibration, FrameMotion(pose, time, motion, gap, not is_first))
        if not all(np.isfinite(values[-1]).all() for values in outputs.values()):
            self.reset()
            raise InferenceError('the network gave NaN or infinity; the memory was emptied')
        self._last = StreamState({}, pose, time, scene_of(frame.scene_token, last))
        self.was_reset = is_first
        return StepResult(outputs, self.boxes_of(outputs), is_first)

    def graph_seconds(self) -> dict[str, float]:
        """Return name of a part -> seconds that the engine spent in it so far."""
        return {part: graph.seconds for part, graph in self.contract.graphs.items()}

    def reset(self) -> None:
        """Empty the memory; the next frame may have any time."""
        self._last: StreamState | None = None  # without the memory, which the contract keeps

    @property
    def state(self) -> StreamState | None:
        """A copy of the memory after the last frame, None when it is empty; assign one to go on from it.

        ShapeError: an assigned memory lacks a tensor, or one has another shape than in the files, NaN or
            infinity. DataError: its pose or time is not valid.
        """
        if self._last is None:
            return None
        last = self._last
        tensors = self.contract.read_state(last.ego_pose, last.timestamp_s)
        return dataclasses.replace(last, tensors=tensors, ego_pose=last.ego_pose.copy())

    @state.setter
    def state(self, state: StreamState | None) -> None:
        if state is None:
            self.reset()
            return
        check_tensors(state.tensors, self.contract.state_shapes)
        pose = frame_checks.check_pose(state.ego_pose, 'state: ego_pose')
        time = frame_checks.check_time(state.timestamp_s)
        self.contract.write_state(state.tensors, pose, time)
        self._last = StreamState({}, pose, time, state.scene_token or '')


def decode(cls_scores: np.ndarray, bbox_preds: np.ndarray, facts: Mapping[str, Any]) -> Detections3D:
    """Return boxes, best first, of logits (L, 1, Q, K) and codes (L, 1, Q, 10); the last layer alone counts.

    Codes are x, y, z of the centre in the LiDAR frame, m, logarithms of length, width and height, sine and
    cosine of the yaw, and velocity x, y, m/s; boxes have z at the bottom. `facts` are the entry `postprocess`
    of the metadata: `max_num` and others, see `query_boxes.decode`.
    """
    return query_boxes.decode(cls_scores, bbox_preds, facts, query_boxes.at_least, query_boxes.IN_ORDER)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    """Return the boxes of a frame, best first, for a program that runs the files by itself.

    They are in its LiDAR frame: the best `max_num` pairs of query and class, of which `post_center_range` (of
    centres) and a `score_threshold` of `metadata` may leave some out; there is no NMS.

    `metadata` and `outputs`, `all_cls_scores` and `all_bbox_preds` (see `decode`), are those of the last
    file.
    """
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess)


OPENS = StreamPetrOnnx
"""The class that opens an export."""
