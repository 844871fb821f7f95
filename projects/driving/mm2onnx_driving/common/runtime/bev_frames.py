"""Frames of models that keep their bird's-eye view: facts, records of motion, and the stream."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mm2onnx_driving.common.runtime.query_boxes import QueryBoxFacts
from mmdeploy_ext.base.errors import DataError
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
from mmdeploy_ext.runtime.frame_checks import check_pose
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.streams import StreamRuntime, frame_of_rig
from mmdeploy_ext.spec.facts import Count, Positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.preparation import MultiViewRule

RECORDED = 'wwww', 'wxyz'


@dataclasses.dataclass(frozen=True, kw_only=True)
class BevFacts(QueryBoxFacts):
    """Facts of a model with a bird's-eye view that is kept.

    Attributes:
        bev_h, bev_w: rows and columns of the bird's-eye view.
        extent: width and height of the view, metres.
        rotate_center: column and row about which the last view turns.
        rotate_prev_bev, use_shift: whether the last view is turned and shifted by the motion of the car.
        can_bus_orientation: kind of record of the training data.
    """

    bev_h: Count
    bev_w: Count
    extent: tuple[Positive, Positive]
    rotate_center: tuple[float, float]
    rotate_prev_bev: bool
    use_shift: bool
    can_bus_orientation: Literal['wwww', 'wxyz']


NO_RECORD = (
    'have no can_bus: position, orientation and heading come from ego2global; acceleration, rotation rate '
    "and velocity are 0, as in BEVFormer's data set for scenes without a record"
)


def record_of(frame: Frame, orientation: str = '') -> np.ndarray:
    """Return the record (18,) of a frame, or one derived from its pose."""
    if frame.can_bus is None:
        record = record_of_pose(check_pose(frame.ego_pose))
    else:
        record = check_record(frame.can_bus)
    if orientation and (kind := orientation_of(record)) != orientation:
        got = ORIENTATIONS.get(kind, 'neither of both kinds')
        raise DataError(
            f'can_bus: entries 3 to 6 are {record[3:7].tolist()}, {got}; the model was trained with '
            f'{ORIENTATIONS[orientation]} (can_bus_orientation={orientation!r}): pass such records, or '
            'set the other value in the config and export again'
        )
    return record


def check_record(can_bus: np.ndarray) -> np.ndarray:
    """Return a float64 copy of a record (18,); raises DataError for another shape or non-finite values."""
    record = np.array(can_bus, np.float64)
    if record.shape != (CAN_BUS,) or not np.isfinite(record).all():
        raise DataError(
            f'can_bus: got {record.tolist()}, expected {CAN_BUS} finite numbers: position, orientation, '
            f'acceleration, rotation rate, velocity, heading'
        )
    return record


class BevOnnx(StreamRuntime):
    """Images, calibration and motion to the outputs of the last of `files`; `names` renames these."""

    reads = ('lidar2img',)
    names: ClassVar[dict[str, str]] = {}

    def __init__(self, paths: Paths, **options: Any) -> None:
        super().__init__(paths, **options)
        self._moments = self._without_record = 0

    def checked(self, frame: Frame) -> Frame:
        return dataclasses.replace(super().checked(frame), can_bus=self.record(frame))

    def record(self, frame: Frame) -> np.ndarray:
        """Return the record (18,) of a frame with the model's orientation."""
        return record_of(frame, self.metadata.postprocess.can_bus_orientation)

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        graph = self.graphs[self.files[-1]]
        # any numbers at a first frame: a proof compares with a model that has none
        view = np.ones(graph.spec.tensor('prev_bev').axes) if memory is None else memory.tensors['bev_embed']
        feeds = self.feeds_of(frame, self.before(memory))
        feeds |= dict(prev_bev=view, use_prev_bev=np.array([0.0 if memory is None else 1.0]))
        inputs = {tensor.name: tensor.dtype for tensor in graph.spec.inputs}
        outputs = graph.run({name: values.astype(inputs[name]) for name, values in feeds.items()})
        return {self.names.get(name, name): values for name, values in outputs.items()}

    def before(self, memory: StreamState | None) -> np.ndarray | None:
        """Return position and heading of the last frame, in a record (18,)."""
        if memory is None:
            return None
        record = np.zeros(CAN_BUS)
        record[:3], record[YAW_DEG] = memory.tensors['position'], memory.tensors['heading'][0]
        return record

    def feeds_of(self, frame: Frame, before: np.ndarray | None) -> dict[str, np.ndarray]:
        facts, motion = self.metadata.postprocess, motion_since(frame.can_bus, before)
        moves = before is not None and facts.use_shift
        size = facts.bev_h, facts.bev_w
        return dict(
            img=frame.images,
            lidar2img=frame.lidar2img,
            can_bus=motion,
            bev_shift=bev_shift(motion, facts.extent) if moves else np.zeros(2),
            bev_rotation=bev_rotation(motion[YAW_DEG], facts.rotate_center, size),
        )

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        place = dict(position=frame.can_bus[:3], heading=frame.can_bus[[YAW_DEG]])
        return dict(place, bev_embed=outputs['bev_embed'])

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        view = self.graphs[self.files[-1]].spec.tensor('prev_bev').axes
        return dict(bev_embed=tuple(view), position=(3,), heading=(1,))

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Frame:
        self._moments += 1
        self._without_record += rig.info.get('can_bus') is None
        return frame_with_record(images_bgr, rig, self.rule)

    @property
    def notes(self) -> list[str]:
        missing = f'{self._without_record} of {self._moments} frames {NO_RECORD}'
        return [missing] if self._without_record else []


def frame_with_record(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
    """Return `frame_of_rig` with the info's record as `can_bus`."""
    info = rig.info
    translation, rotation = (info.get(f'ego2global_{part}') for part in ('translation', 'rotation'))
    if translation is None or rotation is None:
        record = record_of_pose(rig.ego_pose)
    else:
        record = can_bus_record(translation, rotation, info.get('can_bus'))
    return dataclasses.replace(frame_of_rig(images_bgr, rig, rule), can_bus=record)
