"""Frames of cameras and LiDAR: checked, and made of a data set's infos.

Glossary: N cameras, H, W pictures of the network, h, w pictures as taken, P points, V values per point.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.runtime.calibration import check_calibration
from mmdeploy_ext.runtime.exported import Runtime
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.runtime.infos import find_file, past_sweeps
from mmdeploy_ext.runtime.points import check_in_range, check_points, read_points
from mmdeploy_ext.runtime.preprocess.cameras import prepare_views
from mmdeploy_ext.runtime.preprocess.fusion import past_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import StepResult
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.preparation import FusionRule

FAMILY = 'bevfusion_det'
NO_POINTS = np.zeros((0, 5), np.float32)


class FusionRuntime(Runtime):
    """Base class of all runtimes of BEVFusion: data of cameras and LiDAR to boxes."""

    _rig: tuple[bytes, Any] = b'', None

    def of_rig(self, matrices: Arrays, names: Sequence[str], make: Callable[..., Any]) -> Any:
        """Return `make(matrices)`, computed again only if a matrix changed since the last call."""
        key = b''.join(np.ascontiguousarray(matrices[name], np.float32).tobytes() for name in names)
        if self._rig[0] != key:
            self._rig = key, make(matrices)
        return self._rig[1]

    @abc.abstractmethod
    def step(self, frame: FusedFrame) -> StepResult:
        """Detect in one frame with pictures prepared for the network (`frame_of_rig`)."""

    def detect(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Detections3D:
        """Return the boxes of one frame of a data set's infos, best first."""
        return self.step(self.moment(images_bgr, rig, root)).detections

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> FusedFrame:
        return frame_of_rig(images_bgr, rig, self.rule, root)


def frame_of_rig(
    images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: FusionRule, root: str | Path | None = None
) -> FusedFrame:
    """Return one moment of a data set as inputs; without cameras only the points.

    Args:
        images_bgr: N pictures (h, w, 3) uint8 BGR, in the order of the cameras.
        rig: the moment of `runtime.infos.read_frames`: calibration, pose, and paths.
        rule: how pictures and points are prepared.
        root: folder of the data set; None: missing files are searched beside the infos.
    """
    if rule.views is None:
        return FusedFrame(points_of(rig, rule, root), rig.name)
    images = prepare_views(rule.views, images_bgr)
    intrinsics = np.tile(np.eye(4), (len(images), 1, 1))
    intrinsics[:, :3, :3] = rig.intrinsics
    calibration = dict(
        camera_intrinsics=intrinsics,
        camera2lidar=invert_pose(rig.lidar2cam),
        lidar2image=rig.lidar2img,
        img_aug_matrix=rule.img_aug_matrix(),
        lidar_aug_matrix=np.eye(4),
    )
    return FusedFrame(
        points_of(rig, rule, root),
        rig.name,
        images=images,
        calibration={name: matrix.astype(np.float32) for name, matrix in calibration.items()},
        image_files=tuple(str(path or '') for path in rig.pictures),
    )


def points_of(rig: RigFrame, rule: FusionRule, root: str | Path | None = None) -> np.ndarray:
    """Return points (P, V) float32 of a key frame and its past sweeps, in the key frame's LiDAR frame, m."""
    if rule.voxels is None:
        return NO_POINTS
    info, title = rig.info, f'{rig.source}: the info of {rig.name}'
    if 'lidar_path' not in info:
        raise DataError(f'{title} has no lidar_path; expected the path of a sweep')

    def read(name: Any) -> np.ndarray:
        return read_points(find_file(name, rig.source, root, 'sweep'), rule.load_dim)

    points = read(info['lidar_path'])
    if rule.sweeps:
        points = past_of(rule).merge(points, past_sweeps(info, title), rig.timestamp_s, read)
    return np.ascontiguousarray(points[:, list(rule.use_dim)])


def checked_inputs(frame: FusedFrame, rule: FusionRule) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return checked points (P, V) and pictures (N, 3, H, W) of a frame, float32."""
    points = images = None
    if rule.voxels is not None:
        points = check_points(frame.points, int(rule.voxels.in_channels), frame.name)
        check_in_range(points, rule.voxels.point_cloud_range, frame.name)
    if rule.views is not None:
        check_calibration(frame.calibration, rule.views.num_cameras, frame.name)
        images = check_images(frame, rule.views.input_size, rule.views.num_cameras)
    return points, images


def check_images(frame: FusedFrame, size: tuple[int, int], cameras: int = 0) -> np.ndarray:
    """Return pictures (N, 3, H, W) float32 of `size` (H, W); 0 `cameras` is any number.

    Raises ShapeError for missing pictures or another shape.
    """
    images = getattr(frame, 'images', None)
    expected = (cameras or (len(images) if images is not None else 'N'), 3, *size)
    if images is None or images.shape != expected:
        shape = 'there are none' if images is None else f'of shape {images.shape}'
        raise ShapeError(f'{frame.name or "frame"}: camera images have shape {shape}, expected {expected}')
    return np.ascontiguousarray(images, np.float32)
