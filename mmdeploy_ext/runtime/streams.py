"""Exported camera models, frame by frame: opening, scenes, memory. No torch.

N cameras, H, W network input in pixels, h, w of a raw picture.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import logging
import time
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.base.errors import InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.base import Backend, is_recording, note_run, record_runs
from mmdeploy_ext.runtime import frame_checks
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.runtime.exported import Runtime, check_finite, check_same_export, export_files
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.preprocess.cameras import Calibration, calibrate, prepare_views
from mmdeploy_ext.spec.metadata import damaged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from onnxruntime import OrtValue

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.preparation import MultiViewRule

    Held = OrtValue | np.ndarray


# A graph with outputs that may stay on the engine's device for the next graph or frame.


DEVICES = dict.fromkeys(('CUDAExecutionProvider', 'TensorrtExecutionProvider'), 'cuda')
"""Execution provider -> device of its tensors; others use the CPU."""


class HeldGraph:
    """An active engine that takes and gives tensors on its device.

    Attributes:
        spec, metadata: of the file.
        seconds: of all successful runs.
        fed_bytes: bytes of arrays fed so far, without tensors on the device.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.spec, self.metadata = backend, backend.spec, backend.metadata
        self.seconds, self.fed_bytes = 0.0, 0
        self.is_bound = backend.engine == 'onnxruntime'
        self.device = 'cpu'
        if self.is_bound:
            self.device = DEVICES.get(backend.session.get_providers()[0], 'cpu')

    def zeros(self, name: str) -> Held:
        tensor = self.spec.tensor(name)
        return self._on_device(np.zeros(tensor.axes, tensor.dtype))

    def run(self, feeds: Mapping[str, Held], on_device: Collection[str] = ()) -> dict[str, Held]:
        """Run the graph; `held` outputs stay on the device, others are float32 arrays or integers.

        Unknown feeds are ignored. Errors as in `Backend.infer`.
        """
        feeds = {name: feeds[name] for name in self.spec.input_names if name in feeds}
        arrays = {name: value for name, value in feeds.items() if isinstance(value, np.ndarray)}
        start = time.perf_counter()
        if self.is_bound and (on_device or len(arrays) < len(feeds)):
            outputs = self._run_bound(feeds, on_device)
        else:
            outputs = self.backend.infer({name: on_cpu(value) for name, value in feeds.items()})
        self.seconds += time.perf_counter() - start
        self.fed_bytes += sum(array.nbytes for array in arrays.values())
        return outputs

    def _run_bound(self, feeds: Mapping[str, Held], on_device: Collection[str]) -> dict[str, Held]:
        session = self.backend.session
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value, self.spec.tensor(name).dtype)
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.spec.output_names:
            binding.bind_output(name, self.device if name in on_device else 'cpu')
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise InferenceError(f'{self.backend.path}: ONNX Runtime failed to run it: {error}') from error
        values = dict(zip(self.spec.output_names, binding.get_outputs(), strict=True))
        if is_recording():
            note_run(
                self.backend.path,
                {name: on_cpu(value) for name, value in feeds.items()},
                {name: on_cpu(value) for name, value in values.items()},
            )
        return {name: value if name in on_device else fetch(value) for name, value in values.items()}

    def _on_device(self, array: np.ndarray) -> Held:
        if not self.is_bound:
            return array
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array, self.device, 0)


def on_cpu(value: Held) -> np.ndarray:
    """The tensor as array on the CPU, perhaps sharing memory."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def fetch(value: Held) -> np.ndarray:
    """Copy of a tensor on the CPU; float16 becomes float32."""
    array = np.array(on_cpu(value))
    return array.astype(np.float32) if array.dtype == np.float16 else array


logger = logging.getLogger(__name__)


class StreamRuntime(Runtime):
    """An exported camera model: a `Stepper` of frames. Families define `run`.

    Attributes:
        files: graphs in order; the last gives the boxes.
        parts: titles of the graphs in timings.
        reads: checked fields of a `Frame` besides images.
        image_shape: (N, 3, H, W) of prepared images.
        max_gap_s: a longer gap begins a scene; None never, as in published models.
        was_reset: the last frame had no predecessor.
        fed_bytes: bytes copied for the last frame, besides images.
    """

    families: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]] = ('network',)
    reads: ClassVar[tuple[str, ...]]
    gap_s: ClassVar[float | None] = None
    build = staticmethod(build_backend)

    def __init__(
        self,
        paths: Paths,
        *,
        max_gap_s: float | EllipsisType | None = ...,
        engine: str = 'OnnxRuntimeBackend',
        **options: Any,
    ) -> None:
        """Open the folder or files of an export. With ONNX Runtime, inner tensors stay on its device."""
        super().__init__()
        self.graphs = self._open(paths, engine, options)
        self.metadata = self.graphs[self.files[-1]].metadata
        self.image_shape = self.prepared_shape()
        prepared = (self.rule.num_cameras, 3, *self.rule.input_size)
        if prepared != self.image_shape:
            error = f'makes images of {prepared}, the graph expects {self.image_shape}'
            raise damaged(
                ', '.join(graph.backend.path for graph in self.graphs.values()), 'preprocess', error
            )
        self.max_gap_s = self.gap_s if max_gap_s is ... else max_gap_s
        self.was_reset = False
        self._of_rig: dict[str, tuple[list[bytes], dict[str, Held]]] = {}
        self._memory: StreamState | None = None

    def _open(self, paths: Paths, engine: str, options: Mapping[str, Any]) -> dict[str, HeldGraph]:
        files = export_files(paths, self.files)
        backends = self.opened_by_form(files, engine, options, self.families, self.build)
        if set(backends) != set(self.files):
            raise ModelFileError(
                f'{", ".join(map(str, files))}: got the graphs {", ".join(backends)}; expected '
                f'{", ".join(self.files)} of one export'
            )
        check_same_export({backend.path: backend.metadata for backend in backends.values()})
        return {name: HeldGraph(backends[name]) for name in self.files}

    # ---- defined by a family

    def prepared_shape(self) -> tuple[int, ...]:
        """Return `image_shape` as the first graph states it."""
        return tuple(self.graphs[self.files[0]].spec.inputs[0].axes[-4:])

    @abc.abstractmethod
    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, Held]:
        """Outputs of a checked frame by name; without a `memory` the frame is the first of a scene."""

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, Held]
    ) -> dict[str, Held]:
        """Tensors of the memory after a frame, from the outputs of `run`."""
        return {}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each memory tensor."""
        return {}

    def hidden(self, name: str) -> bool:
        """Whether an output of `run` is hidden from `step`, such as memory."""
        return False

    def starts_anew(self, frame: Frame, memory: StreamState | None) -> bool:
        """Whether a frame has no predecessor."""
        return memory is None

    # ---- frames

    @property
    def num_cameras(self) -> int:
        return self.image_shape[0]

    def detect(
        self,
        images_bgr: Sequence[np.ndarray],
        calibration: Calibration | None,
        ego_pose: np.ndarray | None,
        timestamp_s: float,
        scene_token: str | None = None,
        **fields: Any,
    ) -> Detections3D:
        """Boxes in the images of one moment, in its LiDAR frame, best first.

        Args:
            images_bgr: N images (h, w, 3) uint8 in the order of `rule.cameras`.
            calibration: of `preprocess.cameras.calibrate`; equal numbers while the rig is the same.
            ego_pose: (4, 4) float64, LiDAR frame to a global frame.
            timestamp_s: seconds from any fixed point.
            scene_token: a change means a new scene; None: unchanged.
            fields: further ones of a `Frame`, such as `can_bus`.
        """
        images, (lidar2img, intrinsics) = prepare_views(self.rule, images_bgr), calibration or (None, None)
        frame = Frame(images, lidar2img, intrinsics, ego_pose, timestamp_s, scene_token, **fields)
        return self.step(frame).detections

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame and keep the memory.

        Raises:
            ShapeError: images of another number, size or dtype.
            DataError: an invalid field of `reads`; the memory stays.
            InferenceError: the engine failed, and the memory stays; or NaN or infinity, which empties it.
        """
        frame, last = self.checked(frame), self._memory
        memory = None if self.begins_scene(last, frame.timestamp_s, frame.scene_token) else last
        fed_before = self._total_fed_bytes()
        outputs = self.run(frame, memory)
        self.fed_bytes = self._total_fed_bytes() - fed_before - frame.images.nbytes
        results = {name: value for name, value in outputs.items() if not self.hidden(name)}
        try:
            check_finite(results, frame.name or 'frame')
        except InferenceError as error:
            self.reset()
            raise InferenceError(f'{error}; the memory was emptied') from error
        tensors = self.next_memory(frame, memory, outputs)
        scene = scene_of(frame.scene_token, last)
        self._memory = StreamState(tensors, copy.copy(frame.ego_pose), frame.timestamp_s, scene)
        self.was_reset = self.starts_anew(frame, memory)
        return StepResult(results, self.boxes_of(results), self.was_reset)

    def checked(self, frame: Frame) -> Frame:
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        values = frame_checks.check_fields(frame, self.reads, self.num_cameras)
        return dataclasses.replace(frame, images=images, **values)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        return runtime_of(self.metadata.family).boxes_of_outputs(self.metadata, outputs)

    def begins_scene(
        self, last: StreamState | None, timestamp_s: float | None, scene_token: str | None
    ) -> bool:
        """Whether a frame begins a scene (logged)."""
        if last is None:
            return True
        if scene_token is not None and last.scene_token and scene_token != last.scene_token:
            logger.info('memory reset: scene changed from %s to %s', last.scene_token, scene_token)
            return True
        if self.max_gap_s is None or timestamp_s - last.timestamp_s <= self.max_gap_s:
            return False
        gap = timestamp_s - last.timestamp_s
        logger.warning('memory reset: %.3f s since the last frame, max_gap_s=%g', gap, self.max_gap_s)
        return True

    # ---- graphs

    def run_for_rig(
        self, name: str, feeds: Mapping[str, np.ndarray], on_device: Collection[str] = ()
    ) -> dict[str, Held]:
        """Outputs of a calibration graph, run again only if `feeds` change."""
        key = [np.asarray(value).tobytes() for value in feeds.values()]
        cached_key, outputs = self._of_rig.get(name, ([], {}))
        if key != cached_key:
            outputs = self.graphs[name].run(feeds, on_device)
            self._of_rig[name] = key, outputs
        return outputs

    def graph_seconds(self) -> dict[str, float]:
        return {part: self.graphs[name].seconds for part, name in zip(self.parts, self.files, strict=True)}

    def _total_fed_bytes(self) -> int:
        return sum(graph.fed_bytes for graph in self.graphs.values())

    # ---- memory

    def reset(self) -> None:
        """Empty the memory; the next frame may have any time."""
        self._memory, self.was_reset = None, False

    @property
    def state(self) -> StreamState | None:
        """Copy of the memory, None when empty; assign one to continue from it."""
        if self._memory is None:
            return None
        tensors = {name: fetch(value) for name, value in self._memory.tensors.items()}
        return dataclasses.replace(self._memory, tensors=tensors, ego_pose=copy.copy(self._memory.ego_pose))

    @state.setter
    def state(self, state: StreamState | None) -> None:
        if state is None:
            self.reset()
            return
        tensors = checked_tensors(state.tensors, self.memory_shapes())
        pose, seconds = copy.copy(state.ego_pose), state.timestamp_s
        if 'ego_pose' in self.reads:
            pose = frame_checks.check_pose(pose, 'state: ego_pose')
        if 'timestamp_s' in self.reads:
            seconds = frame_checks.check_time(seconds)
        self._memory, self.was_reset = StreamState(tensors, pose, seconds, state.scene_token or ''), False

    # ---- data sets

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Frame:
        return frame_of_rig(images_bgr, self.in_box_frame(rig), self.rule)

    def feeds(self, frame: Frame) -> dict[str, np.ndarray]:
        """Inputs of the last graph for a frame, which is run; a frame that is not later begins a drive."""
        if self._memory is not None and frame.timestamp_s <= self._memory.timestamp_s:
            self.reset()
        with record_runs() as runs:
            self.step(frame)
        return runs[-1].inputs


def checked_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    copies = {}
    for name, shape in shapes.items():
        if name not in tensors:
            raise ShapeError(f'state: has no tensor {name!r}; expected {", ".join(shapes)}')
        values = np.array(tensors[name])
        if values.shape != tuple(shape):
            raise ShapeError(
                f'state: {name!r} has shape {values.shape}, expected {tuple(shape)}; it is the memory of '
                f'another model'
            )
        if not np.isfinite(values).all():
            raise ShapeError(
                f'state: {name!r} has NaN or infinity; call reset() to start with an empty memory'
            )
        copies[name] = values
    return copies


def scene_of(token: str | None, last: StreamState | None) -> str:
    if token is None:
        return '' if last is None else last.scene_token
    return token


def frame_of_rig(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    """Frame of `read_frames` with its N pictures (h, w, 3) uint8."""
    calibration = calibrate(rule, rig.intrinsics, rig.lidar2cam)
    images = prepare_views(rule, images_bgr)
    return Frame(
        images,
        *calibration,
        rig.ego_pose,
        rig.timestamp_s,
        rig.scene_token,
        rig.name,
        camera_times_s=rig.camera_times_s,
    )
