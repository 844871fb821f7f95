"""BEVDet and BEVDet4D as a stream: pictures, calibration and pose in, boxes out, views kept between calls.

Glossary: N cameras, A adjacent frames (frames before), C channels, Y, X rows and columns of the view.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.common.runtime.lift_splat import LiftFacts, LiftOnnx, camera_poses
from mmdeploy_ext.families.common.runtime.center_boxes import CenterBoxFacts, decode
from mmdeploy_ext.runtime.geometry import relative_motion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.spec.metadata import Metadata


# ---- facts that the files keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class BevDetFacts(LiftFacts, CenterBoxFacts):
    """The settings of the view and of the boxes; `adjacent` frames before the present one count, or 0."""

    adjacent: int


# ---- stream

FORM, VIEW = 'bevdet', 'bev_feat'
"""Name of the graph, and of its output that the memory keeps."""
MAX_GAP_S = 1.6
"""Adjacent key frames of nuScenes are 0.5 s apart; three that are missing begin a scene."""


def cell_motion(facts: BevDetFacts, present: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) float64 from a cell (column, row, 1) to the cell of its source.

    Args:
        facts: have the grid.
        present: first camera to key ego of the present frame, (4, 4).
        other: first camera of the other frame to the present key ego, (4, 4).
    """
    motion = (present @ np.linalg.inv(other))[np.ix_([0, 1, 3], [0, 1, 3])]
    to_metres = np.diag([*facts.grid_step[:2], 1.0])
    to_metres[:2, 2] = facts.grid_low[:2]
    return np.linalg.inv(to_metres) @ motion @ to_metres


def warp(facts: BevDetFacts, present: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return `cell_motion` (2, 3) float32 with its source as x, y in -1..1 of a view."""
    to_shares = np.diag([2 / (count - 1) for count in facts.grid_count[:2]] + [1.0])
    to_shares[:2, 2] = -1
    return (to_shares @ cell_motion(facts, present, other))[:2].astype(np.float32)


class BevDetOnnx(LiftOnnx):
    families, files, gap_s = ('bevdet',), (FORM,), MAX_GAP_S

    def feeds_of(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        feeds, facts, poses = super().feeds_of(frame, memory), self.metadata.postprocess, camera_poses(frame)
        if not facts.adjacent:
            return feeds
        kept = self.moved_memory(frame, memory)
        warps = []
        for exists, camera2ego in zip(kept['exists'], kept['camera2ego'], strict=True):
            warps.append(warp(facts, poses[0], camera2ego if exists else poses[0]))
        return feeds | dict(prev_bev=kept['views'], prev_exists=kept['exists'], prev_warp=np.stack(warps))

    def moved_memory(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        """Return the memory with poses of the first camera in the key ego frame of a frame."""
        if memory is None:
            return self.nothing()
        motion, poses = relative_motion(memory.ego_pose, frame.ego_pose), memory.tensors['camera2ego']
        exists = memory.tensors['exists'][:, None, None] > 0
        return {**memory.tensors, 'camera2ego': np.where(exists, motion @ poses, poses)}

    def nothing(self) -> dict[str, np.ndarray]:
        """Return an empty memory; its views may be any finite numbers."""
        tensors = {name: np.zeros(shape, np.float32) for name, shape in self.memory_shapes().items()}
        poses = np.tile(np.eye(4), (self.metadata.postprocess.adjacent, 1, 1))
        return tensors | dict(camera2ego=poses)

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        if not self.metadata.postprocess.adjacent:
            return {}
        kept = self.moved_memory(frame, memory)
        newest = dict(
            views=outputs[VIEW],
            exists=np.ones(1, np.float32),
            camera2ego=camera_poses(frame)[:1],
        )
        return {name: np.concatenate([rows, kept[name][:-1]]) for name, rows in newest.items()}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        adjacent = self.metadata.postprocess.adjacent
        if not adjacent:
            return {}
        views = tuple(self.graphs[self.files[-1]].spec.tensor('prev_bev').axes)
        return dict(views=views, exists=(adjacent,), camera2ego=(adjacent, 4, 4))


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs, metadata.postprocess)


QUANTISED = FORM
OPENS = BevDetOnnx
