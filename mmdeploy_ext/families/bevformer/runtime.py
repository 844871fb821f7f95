"""BEVFormer as a stream: images, calibration and motion in, boxes out, the view kept between calls.

Needs numpy, OpenCV and ONNX Runtime, no PyTorch.

Glossary: N cameras, H, W network input in pixels, h, w pictures as taken, Q cells of the view, C channels, L
decoder layers, R queries, K classes, n boxes.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.consumers.autoware import bevformer as node
from mmdeploy_ext.consumers.autoware.bevformer_rules import GRAPH as NODE_GRAPH
from mmdeploy_ext.consumers.bev_plugins import open_with_plugins
from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.core.errors import DataError, ShapeError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families.bevformer.options import PORTABLE, TRT_PLUGIN
from mmdeploy_ext.families.parts.options import AUTOWARE
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.parts.runtime.query_boxes import decode
from mmdeploy_ext.families.parts.runtime.rig_frames import CameraRuntime, frame_of_rig, scene_of
from mmdeploy_ext.runtime.bev_motion import (
    CAN_BUS,
    ORIENTATIONS,
    YAW_DEG,
    bev_rotation,
    bev_shift,
    can_bus_record,
    motion_since,
    orientation_of,
    record_of_pose,
)
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.exported import export_files, names_in
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.preprocess.cameras import MultiViewRule
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.infos import RigFrame

FAMILY = 'bevformer'
"""Name of the family in the metadata."""
PORTABLE_NAMES = dict(outputs_classes='all_cls_scores', outputs_coords='all_bbox_preds')
"""Output of a graph of another contract -> its name in the portable one, and in results."""


def contract_of(file: Path) -> str:
    """Return the contract of a file, `--contract` of its export: 'portable', 'trt-plugin' or 'autoware'.

    ModelFileError: it is of another family, or no exported file.
    """
    metadata = read_metadata(file)
    metadata.require(file, FAMILY)
    return metadata.options['contract']


def record_of(frame: Frame, orientation: str = '') -> np.ndarray:
    """Return the record of the car's motion (18,) of a frame; one without has that of its pose.

    `orientation` is the kind of records that the model was trained with, of `bev_motion.ORIENTATIONS`; ''
    takes any. DataError: the record is of another kind or shape, or not of finite numbers; or the pose that
    stands for it is missing or no valid one.
    """
    if frame.can_bus is None:
        record = record_of_pose(frame_checks.check_pose(frame.ego_pose))
    else:
        record = check_record(frame.can_bus)  # a copy: the next frame compares its position with it
    if orientation and (kind := orientation_of(record)) != orientation:
        got = ORIENTATIONS.get(kind, 'neither of both kinds')
        raise DataError(
            f'can_bus: entries 3 to 6 are {record[3:7].tolist()}, {got}; '
            f'the model was trained with {ORIENTATIONS[orientation]} (can_bus_orientation={orientation!r}): '
            f'give such records, or state the other kind in the config and export again'
        )
    return record


def check_record(can_bus: np.ndarray) -> np.ndarray:
    """Return a copy of a record (18,) as float64; DataError: another shape, or not of finite numbers."""
    record = np.array(can_bus, np.float64)
    if record.shape != (CAN_BUS,) or not np.isfinite(record).all():
        raise DataError(
            f'can_bus: got {record.tolist()}, expected {CAN_BUS} finite numbers: position, orientation, '
            f'acceleration, rotation rate, velocity, heading'
        )
    return record


class BevFormerOnnx(CameraRuntime):
    """An exported BEVFormer with its last bird's-eye view: a `Stepper` of frames.

    What methods without a docstring are for is documented by `CameraRuntime`.

    Attributes:
        contract: that of the file, see `contract_of`.
        backend: the engine with the file.
        seconds: spent in it so far, as `network`.
    """

    def __init__(self, paths: Paths, *, engine: str = 'OnnxRuntimeBackend', **options: Any) -> None:
        """Open the file.

        Args:
            paths: the file of an export, or its folder.
            engine: registered name of the engine's backend.
            options: options of the backend, such as `providers` and `threads`.

        Raises:
            ModelFileError: it is missing, or of another family.
            ConfigError: there is no such engine, or it does not have these options.
            EngineError: the engine is not here.
        """
        super().__init__()
        (file,) = export_files(paths, names_in(paths, (FAMILY,), (NODE_GRAPH,)))
        self.contract = contract_of(file)
        build = open_with_plugins if self.contract == TRT_PLUGIN else build_backend
        self.backend = self.opened(engine, file, options, build)
        self.metadata = self.backend.metadata
        images = self.backend.spec.tensor('img' if self.contract == PORTABLE else 'image').axes
        self.image_shape = tuple(images[-4:])
        self.seconds = dict(network=0.0)
        self._moments = self._without_record = 0
        self._view = np.zeros(self.backend.spec.tensor('prev_bev').axes, np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: the next one begins a scene, and its results do not depend on the view.

        The view stays what it was: a proof shows with each new scene that a first frame takes any numbers.
        """
        self._last: StreamState | None = None  # without the view

    def detect(
        self,
        images_bgr: Sequence[np.ndarray],
        calibration: Any,
        can_bus: np.ndarray,
        scene_token: str | None = None,
    ) -> Detections3D:
        """Return the boxes in the images of one moment, in its LiDAR frame.

        Args:
            images_bgr: N images (h, w, 3) uint8 as OpenCV reads them, in the order of `rule.cameras`.
            calibration: what `rule.calibrate` returns: lidar2img and intrinsics of the network input.
            can_bus: (18,) record of the motion as it is measured, not what it changed by: position in the
                map, m (0 to 2); orientation (3 to 6), `w` of its quaternion four times or the quaternion, as
                the model was trained; acceleration, rotation rate, velocity (7 to 15); heading in rad and in
                degrees; see `bev_motion.motion_since` and `can_bus_record`, which makes one.
            scene_token: a change begins a scene; None leaves the scene as it was, and so does a token after
                frames without one.

        Raises:
            DataError: the record is not of 18 finite numbers, or of another kind than the model was trained
                with; also what `step` raises.
        """
        record = check_record(can_bus)
        images, pose = self.rule.apply(images_bgr), place_of(record)
        return self.step(Frame(images, *calibration, pose, 0.0, scene_token, can_bus=record)).detections

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Frame:
        self._moments += 1
        self._without_record += rig.info.get('can_bus') is None
        return frame_with_record(images_bgr, rig, self.rule)

    @property
    def notes(self) -> list[str]:
        """A line with how many infos that `moment` took lack a record, and what stands for it, if some do."""
        if not self._without_record:
            return []
        return [
            f'{self._without_record} of {self._moments} frames have no can_bus: position, orientation and '
            'heading are of ego2global; acceleration, rotation rate and velocity are 0, as in the data set '
            'of BEVFormer for scenes without a record'
        ]

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame and keep its view.

        Another scene token begins a scene, a gap between times does not. Outputs have the names of the
        portable graph, whatever contract the file has.

        Raises:
            ShapeError: images of another shape.
            DataError: a record, or the pose that stands for it, or a calibration of another shape or not of
                finite numbers, or a record of another kind than the model was trained with.
            InferenceError: the network gave NaN or infinity; the next frame begins a scene then, see `reset`.
        """
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        lidar2img = frame_checks.check_lidar2img(frame.lidar2img, self.num_cameras)
        facts = self.metadata.postprocess
        orientation = facts['can_bus_orientation']
        record = record_of(frame, orientation)
        if self.contract == AUTOWARE:
            fed = node.absolute(node.motion_of(record, orientation))
            record = node.trained_record(fed, orientation)
        is_first = self.begins_scene(self._last, frame.timestamp_s, frame.scene_token)
        before = None
        if not is_first:
            before = np.zeros(CAN_BUS)
            before[:3], before[YAW_DEG] = self._last.tensors['position'], self._last.tensors['heading'][0]
        motion = motion_since(record, before)
        shift = bev_shift(motion, facts['extent']) if facts['use_shift'] else np.zeros(2)
        size = facts['bev_h'], facts['bev_w']
        feeds = dict(can_bus=motion, prev_bev=self._view, use_prev_bev=np.array([0.0 if is_first else 1.0]))
        if self.contract == AUTOWARE:
            feeds['can_bus'] = node.relative(fed, None if is_first else np.float32(before))
        if self.contract == PORTABLE:
            feeds |= dict(img=images, lidar2img=lidar2img, bev_shift=np.zeros(2) if is_first else shift)
            feeds['bev_rotation'] = bev_rotation(motion[YAW_DEG], facts['rotate_center'], size)
        else:
            feeds |= dict(image=images[None], lidar2img=lidar2img[None])
        start = time.perf_counter()
        outputs = self.backend.infer({name: np.float32(values) for name, values in feeds.items()})
        outputs = {PORTABLE_NAMES.get(name, name): values for name, values in outputs.items()}
        self.passed('network', start)
        self.check_outputs(outputs, frame)
        place = dict(position=record[:3], heading=record[[YAW_DEG]])
        scene = scene_of(frame.scene_token, self._last)
        self._last = StreamState(place, copy.copy(frame.ego_pose), frame.timestamp_s, scene)
        self._view, self.was_reset = outputs['bev_embed'], is_first
        return StepResult(outputs, self.boxes_of(outputs), is_first)

    @property
    def state(self) -> StreamState | None:
        """A copy of the view and the place of the last frame, None before the first one and after `reset`.

        Its tensors are `bev_embed` (Q, 1, C) float32, and float64 `position` (3,), m, and `heading` (1,),
        degrees, both in the map. ShapeError: an assigned one has others; the memory stays as it was then.
        """
        if self._last is None:
            return None
        return copy.deepcopy(
            dataclasses.replace(self._last, tensors=dict(bev_embed=self._view, **self._last.tensors))
        )

    @state.setter
    def state(self, state: StreamState | None) -> None:
        if state is None:
            self.reset()
            return
        shapes = dict(bev_embed=self._view.shape, position=(3,), heading=(1,))
        for name, expected in shapes.items():
            if (shape := np.shape(state.tensors.get(name))) != expected:
                raise ShapeError(f'state: {name} is of shape {shape}, expected {expected}')
        self._view = np.array(state.tensors['bev_embed'], np.float32)
        place = {name: np.array(state.tensors[name], np.float64) for name in ('position', 'heading')}
        self._last = dataclasses.replace(state, tensors=place, ego_pose=copy.copy(state.ego_pose))


def place_of(record: np.ndarray) -> np.ndarray:
    """Return the pose (4, 4) float64 of a car that is where its record (18,) states, m, and does not turn."""
    pose = np.eye(4)
    pose[:3, 3] = record[:3]
    return pose


def record_of_info(info: Mapping[str, Any], ego_pose: np.ndarray) -> np.ndarray:
    """Return the record (18,) of the motion of an info, by its pose of the car.

    Of its `can_bus`, if it has one, come entries 7 to 15 alone: acceleration, rotation rate and velocity,
    which are 0 without one, see `bev_motion.can_bus_record`. The pose is `ego2global_translation` and
    `ego2global_rotation`; `ego_pose` (4, 4), LiDAR to global, stands for it in an info without one, whose
    `can_bus` is not read.
    """
    translation, rotation = (info.get(f'ego2global_{part}') for part in ('translation', 'rotation'))
    if translation is None or rotation is None:
        return record_of_pose(ego_pose)
    return can_bus_record(translation, rotation, info.get('can_bus'))


def frame_with_record(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    """Return the frame of `rig_frames.frame_of_rig` with the record of the motion in its info as `can_bus`.

    The arguments and errors are those of that function.
    """
    record = record_of_info(rig.info, rig.ego_pose)
    return dataclasses.replace(frame_of_rig(images_bgr, rig, rule), can_bus=record)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    """Return the boxes of a frame, best first, in its LiDAR frame, for a program that runs the file itself.

    They are the best `max_num` pairs of query and class, of which `post_center_range` (of centres) and a
    `score_threshold` of `metadata`, those of the file, may leave some out; there is no NMS. Of `outputs`, by
    the names of the portable graph, the last layers of `all_cls_scores` (L, 1, R, K) logits and
    `all_bbox_preds` (L, 1, R, 10) count, see `query_boxes.decode`.
    """
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess)


QUANTISED = FAMILY
"""Name of the graph whose layers `quantize.py` puts in INT8."""
OPENS = BevFormerOnnx
"""Class that opens an export, see `mmdeploy_ext/runtime/detect.py`."""
