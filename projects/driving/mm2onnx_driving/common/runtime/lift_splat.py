"""Pictures lifted into a bird's-eye view: facts, places of the points, and the stream of one graph, in numpy.

The frame of results, of `lidar2img` and of `ego_pose` is the key ego frame: the car's (x ahead, y left) when
the first camera took its picture.

Glossary: N cameras, D depth bins, h, w cells of a feature map, P points.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.infos import camera_names, pose_of
from mmdeploy_ext.runtime.streams import StreamRuntime
from mmdeploy_ext.spec.facts import Facts, Positive

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.preparation import MultiViewRule

BORDER = 2e-4
"""Share of a cell by which float32 may misplace a point. Source: the reference data of upstream."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiftFacts(Facts):
    """The settings of the view.

    Attributes:
        grid_low: lowest x, y, z of the grid, metres.
        grid_step: size of its cells along x, y, z, metres.
        grid_count: number of cells along x, y, z.
        depths: metres of the depth bins.
        columns, rows: pixels of the network's picture at which the cells of the feature map are lifted.
    """

    grid_low: tuple[float, float, float]
    grid_step: tuple[Positive, Positive, Positive]
    grid_count: tuple[int, int, int]
    depths: tuple[float, ...]
    columns: tuple[float, ...]
    rows: tuple[float, ...]


def camera_poses(frame: Frame) -> np.ndarray:
    """Return camera to key ego (N, 4, 4) float64."""
    return np.linalg.solve(frame.lidar2img, frame.intrinsics)


def frustum_places(
    facts: LiftFacts, sensor2keyego: np.ndarray, intrinsics: np.ndarray, crop: np.ndarray
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


def border_points(facts: LiftFacts, points: np.ndarray) -> np.ndarray:
    """Return whether rounding may choose the cell of points (N, 3, P): near a border, (N P,) bool."""
    low, step, count = (
        np.float64(values)[:, None] for values in (facts.grid_low, facts.grid_step, facts.grid_count)
    )
    cells = (points - low) / step
    borders = np.rint(cells)
    near = (np.abs(cells - borders) < BORDER) & (borders != 0)  # -0.5 is truncated to cell 0, too
    inside = (cells > -1 - BORDER) & (cells < count + BORDER)
    return (near.any(1) & inside.all(1)).ravel()


class LiftOnnx(StreamRuntime):
    """One graph of pictures and poses."""

    reads = ('lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        return self.graphs[self.files[-1]].run(self.feeds_of(frame, memory))

    def feeds_of(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        """Return the inputs of the graph."""
        poses, crop = camera_poses(frame), self.rule.crop_matrix().astype(np.float64)
        pictures = np.linalg.inv(crop) @ frame.intrinsics[:, :3, :3]
        return dict(
            img=frame.images, sensor2keyego=poses.astype(np.float32), intrinsics=pictures.astype(np.float32)
        )

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
