"""Exported models of cameras, frame by frame: how they are opened, their scenes, and their memory. No torch.

Glossary: N cameras, H, W network input in pixels, h, w pixels of a picture as taken.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import logging
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.metadata import damaged
from mmdeploy_ext.core.errors import InferenceError, ModelFileError, ShapeError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.runtime import frame_checks
from mmdeploy_ext.runtime.detect import runtime_of
from mmdeploy_ext.runtime.exported import Runtime, check_finite, check_same_export, export_files
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.runtime.held import HeldGraph, fetch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.preprocess.cameras import Calibration, MultiViewRule
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.held import Held
    from mmdeploy_ext.runtime.infos import RigFrame

logger = logging.getLogger(__name__)


class StreamRuntime(Runtime):
    """An exported model of cameras: a `Stepper` of frames. A family says what happens in a frame, see `run`.

        with FamilyOnnx('work_dirs/export') as runtime:
            calibration = runtime.rule.calibrate(intrinsics, lidar2cam)
            boxes = runtime.detect(images_bgr, calibration, ego_pose, timestamp_s)

    Attributes:
        families: names of the families of its files, as in the metadata.
        files: names of its graphs, in the order in which a frame goes through them; the last gives the boxes.
        parts: what these graphs are, in figures of time.
        reads: fields of a `Frame` that the model reads besides its images; the others are not checked.
        gap_s: default of `max_gap_s`.
        build: opens a file: see `Runtime.opened`.
        graphs: name of a graph -> its engine.
        image_shape: (N, 3, H, W) of prepared images.
        max_gap_s: a longer gap between two frames begins a scene, None never does, as in published models.
        was_reset: whether the last frame had no frame before that counted for it.
        fed_bytes: bytes that were copied to the engines for the last frame, besides the images.
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
        """Open the files.

        Args:
            paths: the folder of an export, its files in any order, or its only file.
            max_gap_s: see the class; left out, it is the default of the family.
            engine: registered name of the backend. With ONNX Runtime, tensors that a next graph or frame
                reads stay on its device.
            options: options of the backend, for example `providers`, `threads`.

        Raises:
            ModelFileError: a file is missing, there twice, of another family, contract or export, or its
                preprocessing makes images of another shape than the graph takes.
            EngineError: the engine or a provider is not here.
            ConfigError: no such engine, or one without these options.
        """
        super().__init__()
        self.graphs = self._open(paths, engine, options)
        self.metadata = self.graphs[self.files[-1]].metadata
        self.image_shape = tuple(self.graphs[self.files[0]].spec.inputs[0].axes[-4:])
        prepared = (self.rule.num_cameras, 3, *self.rule.input_size)
        if prepared != self.image_shape:
            error = f'makes images of {prepared}, the graph takes {self.image_shape}'
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

    # ---- what a family says

    @abc.abstractmethod
    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, Held]:
        """Return the outputs of a checked frame by name; `memory` is None at the first frame of a scene."""

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, Held]
    ) -> dict[str, Held]:
        """Return the tensors of the memory after a frame, from what `run` returned."""
        return {}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each tensor of the memory; an assigned `state` is checked by them."""
        return {}

    def hidden(self, name: str) -> bool:
        """Return whether an output of `run` is no output of `step`, such as one that becomes memory."""
        return False

    def starts_anew(self, frame: Frame, memory: StreamState | None) -> bool:
        """Return whether a frame has no frame before that counts for it."""
        return memory is None

    # ---- frames

    @property
    def num_cameras(self) -> int:
        """N."""
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
        """Return the boxes in the images of one moment, in its LiDAR frame, best first.

        Args:
            images_bgr: N images (h, w, 3) uint8 as OpenCV reads them, in the order of `rule.cameras`.
            calibration: of `rule.calibrate`; give the same object or equal numbers while the rig is the same.
            ego_pose: (4, 4) float64, LiDAR frame to a global frame.
            timestamp_s: seconds, absolute or from any fixed point.
            scene_token: a change means a new scene; None leaves the scene as it was.
            fields: further ones of a `Frame`, such as `camera_times_s` or `can_bus`.

        Raises:
            ShapeError: images of another number or size.
            DataError, InferenceError: see `step`.
        """
        images, (lidar2img, intrinsics) = self.rule.apply(images_bgr), calibration or (None, None)
        frame = Frame(images, lidar2img, intrinsics, ego_pose, timestamp_s, scene_token, **fields)
        return self.step(frame).detections

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame, and keep the memory after it.

        Raises:
            ShapeError: images of another number, size or dtype than float32.
            DataError: a field in `reads` is missing or not valid; the memory stays as it was.
            InferenceError: the engine failed, and the memory stays as it was; or the network gave NaN or
                infinity, which empties it.
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
        """Return a frame whose images and fields in `reads` are valid copies; for the errors see `step`."""
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        values = frame_checks.check_fields(frame, self.reads, self.num_cameras)
        return dataclasses.replace(frame, images=images, **values)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the outputs of a frame by the family's runtime, best first."""
        return runtime_of(self.metadata.family).boxes_of_outputs(self.metadata, outputs)

    def begins_scene(
        self, last: StreamState | None, timestamp_s: float | None, scene_token: str | None
    ) -> bool:
        """Return whether a frame begins a scene; a change of scene and a gap are logged.

        None as `scene_token` leaves the scene as it was, and so does any token after a frame without one.
        """
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
        self, name: str, feeds: Mapping[str, np.ndarray], held: Collection[str] = ()
    ) -> dict[str, Held]:
        """Return the outputs of a graph of the calibration alone, which runs again if `feeds` change."""
        key = [np.asarray(value).tobytes() for value in feeds.values()]
        known, outputs = self._of_rig.get(name, ([], {}))
        if key != known:
            outputs = self.graphs[name].run(feeds, held)
            self._of_rig[name] = key, outputs
        return outputs

    def graph_seconds(self) -> dict[str, float]:
        """Return name in `parts` -> seconds that were spent in the graph so far."""
        return {part: self.graphs[name].seconds for part, name in zip(self.parts, self.files, strict=True)}

    def _total_fed_bytes(self) -> int:
        return sum(graph.fed_bytes for graph in self.graphs.values())

    # ---- memory

    def reset(self) -> None:
        """Empty the memory: the next frame begins a scene, and may have any time."""
        self._memory, self.was_reset = None, False

    @property
    def state(self) -> StreamState | None:
        """A copy of the memory after the last frame, None when it is empty; assign one to go on from it.

        ShapeError: an assigned memory lacks a tensor, or one has another shape, NaN or infinity. DataError:
        its pose or time is not valid. The memory stays as it was then.
        """
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
        """Return a frame of a data set's infos as `step` takes it; `root` is not used, see `frame_of_rig`."""
        return frame_of_rig(images_bgr, rig, self.rule)

    def feeds(self, frame: Frame) -> dict[str, np.ndarray]:
        """Return the inputs of the last graph for a prepared frame, which is run and remembered.

        A frame that is not later than the one before begins a drive, as the first of another pass does.
        """
        if self._memory is not None and frame.timestamp_s <= self._memory.timestamp_s:
            self.reset()
        with record_runs() as runs:
            self.step(frame)
        return runs[-1].inputs


def checked_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return copies of the tensors of a memory; ShapeError, which names one that is missing or of no use."""
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
                f'state: {name!r} has NaN or infinity; call reset() to begin with an empty memory'
            )
        copies[name] = values
    return copies


def scene_of(token: str | None, last: StreamState | None) -> str:
    """Return the scene of a frame; without a `token` it is that of the frame before, '' if it is unknown."""
    if token is None:
        return '' if last is None else last.scene_token
    return token


def frame_of_rig(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    """Return a frame of `read_frames` with its N pictures (h, w, 3) uint8 as inputs of the model.

    Raises:
        ShapeError: wrong number or size of pictures.
        DataError: matrices of the calibration for another number of cameras, or with NaN or infinity.
    """
    calibration = rule.calibrate(rig.intrinsics, rig.lidar2cam)
    images = rule.apply(images_bgr)
    return Frame(
        images,
        *calibration,
        rig.ego_pose,
        rig.timestamp_s,
        rig.scene_token,
        rig.name,
        camera_times_s=rig.camera_times_s,
    )
