"""BEVDet and BEVDet4D as a stream: pictures, calibration and pose in, boxes out, views kept between calls.

The frame of boxes, of `lidar2img` and of `ego_pose` is the key ego frame: the car's (x ahead, y left) when
the first camera, FRONT_LEFT, took its picture.

Glossary: N cameras, A adjacent frames (frames before), C channels, Y, X rows and columns of the view.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.common.runtime.center_boxes import decode
from mmdeploy_ext.runtime.geometry import relative_motion
from mmdeploy_ext.runtime.infos import camera_names, pose_of
from mmdeploy_ext.runtime.streams import StreamRuntime
from mmdeploy_ext.util.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.preprocess.cameras import MultiViewRule
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.systems.bevdet.facts import BevDetFacts

FORM, VIEW = 'bevdet', 'bev_feat'
"""Name of the graph, and of its output that the memory keeps."""
BORDER = 2e-4
"""Share of a cell by which float32 may misplace a point. Source: the reference data of upstream."""
MAX_GAP_S = 1.6
"""Adjacent key frames of nuScenes are 0.5 s apart; three that are missing begin a scene."""


def camera_poses(frame: Frame) -> np.ndarray:
    """Return camera to key ego (N, 4, 4) float64."""
    return np.linalg.solve(frame.lidar2img, frame.intrinsics)


def frustum_places(
    facts: BevDetFacts, sensor2keyego: np.ndarray, intrinsics: np.ndarray, crop: np.ndarray
) -> np.ndarray:
    """Return the lifted points (N, 3, D h w) float64, metres in the key ego frame.

    Args:
        facts: have the frustum.
        sensor2keyego: (N, 4, 4), camera to key ego.
        intrinsics: (N, 3, 3), camera to picture as it was taken.
        crop: (3, 3), picture as it was taken (x, y, 1) to the network's.
    """
    axes = np.meshgrid(facts.depths, facts.rows, facts.columns, indexing='ij')
    depth, row, column = (np.float64(np.float32(axis)).ravel() for axis in axes)
    x, y = (column - crop[0, 2]) / crop[0, 0], (row - crop[1, 2]) / crop[1, 1]
    rays, poses = np.stack([x * depth, y * depth, depth]), np.float64(sensor2keyego)
    return poses[:, :3, :3] @ np.linalg.inv(np.float64(intrinsics)) @ rays + poses[:, :3, 3:]


def border_points(facts: BevDetFacts, points: np.ndarray) -> np.ndarray:
    """Return whether rounding may choose the cell of points (N, 3, P): near a border, (N P,) bool."""
    low, step, count = (
        np.float64(values)[:, None] for values in (facts.grid_low, facts.grid_step, facts.grid_count)
    )
    cells = (points - low) / step
    borders = np.rint(cells)
    near = (np.abs(cells - borders) < BORDER) & (borders != 0)  # -0.5 is truncated to cell 0, too
    inside = (cells > -1 - BORDER) & (cells < count + BORDER)
    return (near.any(1) & inside.all(1)).ravel()


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


class BevDetOnnx(StreamRuntime):
    families, files, gap_s = ('bevdet',), (FORM,), MAX_GAP_S
    reads = ('lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        return self.graphs[self.files[-1]].run(self.feeds_of(frame, memory))

    def feeds_of(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        """Return the inputs of the graph."""
        facts, poses = self.metadata.postprocess, camera_poses(frame)
        pictures = np.linalg.inv(self.rule.crop_matrix().astype(np.float64)) @ frame.intrinsics[:, :3, :3]
        feeds = dict(
            img=frame.images, sensor2keyego=poses.astype(np.float32), intrinsics=pictures.astype(np.float32)
        )
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

    def in_box_frame(self, rig: RigFrame) -> RigFrame:
        return rig_in_key_ego(rig, self.rule)


def rig_in_key_ego(rig: RigFrame, rule: MultiViewRule) -> RigFrame:
    """Return the frame of infos in its key ego frame; DataError: they lack a camera's own poses.

    Poses are rounded to float32 first, as BEVDet's loader rounds them.
    """
    place, poses = f'{rig.source}: {rig.name}', []
    for name in camera_names(rig.info, rule, rig.source):
        camera = rig.info['cams'][name]
        pair = (pose_of(camera, f'{place}: {name}', key) for key in ('ego2global', 'sensor2ego'))
        poses.append([np.float64(np.float32(pose)) for pose in pair])
    if not poses:
        raise DataError(f'{place}: has no cameras')
    key = poses[0][0]
    camera2key = np.linalg.inv(key) @ np.stack([ego @ sensor for ego, sensor in poses])
    return dataclasses.replace(rig, lidar2cam=np.linalg.inv(camera2key), ego_pose=key)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs, metadata.postprocess)


QUANTISED = FORM
OPENS = BevDetOnnx
