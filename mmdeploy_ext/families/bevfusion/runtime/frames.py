"""Frames of cameras and LiDAR, refused by name where they cannot be. Needs numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError, ShapeError
from mmdeploy_ext.runtime.bev_nms import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range
from mmdeploy_ext.runtime.points import check_in_range, check_points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.preprocess.fusion import FusionRule
    from mmdeploy_ext.runtime.frames import FusedFrame

FAMILY = 'bevfusion_det'
MATRICES = 'camera_intrinsics', 'camera2lidar', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix'
"""Of a calibration, see `FusedFrame`."""
AGREES = 1e-3
"""Of the largest number of a matrix: how far two ways to compute it may be apart."""
INVERTED = ('camera_intrinsics', 'camera2lidar', 'img_aug_matrix', 'lidar_aug_matrix')


def checked(frame: FusedFrame, rule: FusionRule) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return points (P, V) and pictures (N, 3, H, W) of a frame as a model takes them; None without a sensor.

    Raises:
        ShapeError: pictures or matrices of other shapes.
        DataError: points or matrices that cannot be.
    """
    points = images = None
    if rule.voxels is not None:
        points = check_points(frame.points, int(rule.voxels.in_channels), frame.name)
        check_in_range(points, rule.voxels.point_cloud_range, frame.name)
    if rule.views is not None:
        check_calibration(frame.calibration, rule.views.num_cameras, frame.name)
        images = check_images(frame, rule.views.input_size, rule.views.num_cameras)
    return points, images


def in_lidar_columns(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 7 or 9) as mmdet3d 1.0 has them, from the columns and headings of mmdet3d 0.x.

    These are x, y, z, w, l, h, yaw from -y clockwise, and velocity, as BEVFusion was trained; those of
    `Detections3D` x, y, z, l, w, h, yaw from x counter-clockwise. Applied twice it changes nothing; tensors
    of PyTorch will do.
    """
    turned = boxes[:, [0, 1, 2, 4, 3, 5, *range(6, boxes.shape[1])]]
    turned[:, 6] = -boxes[:, 6] - math.pi / 2
    return turned


def kept(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, coder: Mapping[str, Any]) -> Detections3D:
    """Return of boxes (Q, 9), z at the bottom, those that `coder` of the file's facts keeps, best first."""
    good = np.ones(len(scores), bool)
    if coder['post_center_range'] is not None:
        good = in_range(boxes, coder['post_center_range'])
    if coder['score_threshold']:
        good &= scores > coder['score_threshold']
    return Detections3D(boxes.astype(np.float32), scores, labels.astype(np.int64))[good].best_first()


def spread_out(
    found: Detections3D, nms: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
) -> Detections3D:
    """Return detections, best first, without those too near to a better one of their group.

    `nms` is that of the file's facts: groups of classes, see `_kept_of`; one dict stands for a group of each
    of its classes; None keeps all.
    """
    if nms is None:
        return found
    groups = [dict(nms, classes=[label]) for label in nms['classes']] if isinstance(nms, dict) else nms
    keep = ~np.isin(found.labels, [label for group in groups for label in group['classes']])
    for group in groups:
        rows = np.flatnonzero(np.isin(found.labels, group['classes']))
        keep[rows[_kept_of(found.boxes[rows], found.labels[rows], group)]] = True
    return found[keep]


def _kept_of(boxes: np.ndarray, labels: np.ndarray, group: Mapping[str, Any]) -> np.ndarray:
    """Return the rows of a group's boxes (n, 9), best first, that stay.

    A group has `classes`, ascending; `most` that stay; `radius`, a squared distance in m2, or `overlap`, an
    IoU from above, with `scales` of the sizes of each class and the `first` boxes that are looked at.
    """
    if 'radius' in group:
        return circle_nms(boxes[:, :2], group['radius'])[: group['most']]
    seen = boxes[: group['first'], [0, 1, 3, 4, 6]]
    scales = np.float32(group['scales'])[np.searchsorted(group['classes'], labels[: group['first']])]
    seen[:, 2:4] *= scales[:, None]
    return rotated_nms(seen, group['overlap'])[: group['most']]


def check_images(frame: FusedFrame, size: tuple[int, int], cameras: int = 0) -> np.ndarray:
    """Return the pictures of a frame (N, 3, H, W) float32; ShapeError where there are none or other ones.

    `size` is (H, W); 0 `cameras` stands for any number.
    """
    images = getattr(frame, 'images', None)
    wanted = (cameras or (len(images) if images is not None else 'N'), 3, *size)
    if images is None or images.shape != wanted:
        shape = 'there are none' if images is None else f'of shape {images.shape}'
        raise ShapeError(f'{frame.name or "frame"}: pictures of the cameras: {shape}; expected {wanted}')
    return np.ascontiguousarray(images, np.float32)


def check_calibration(matrices: Mapping[str, np.ndarray], cameras: int, name: str = '') -> None:
    """Refuse a calibration that cannot be.

    Raises:
        DataError: a matrix lacks, holds NaN, has no inverse where one is needed, or disagrees with others.
        ShapeError: of another shape.
    """
    where = name or 'frame'
    for key in MATRICES:
        if key not in matrices:
            raise DataError(f'{where}: the calibration has no {key}')
        matrix, wanted = matrices[key], (4, 4) if key == 'lidar_aug_matrix' else (cameras, 4, 4)
        if matrix.shape != wanted:
            raise ShapeError(f'{where}: {key} is of shape {matrix.shape}, expected {wanted}')
        if not np.isfinite(matrix).all():
            raise DataError(f'{where}: {key} holds NaN or infinity; mend the calibration')
        square = matrix.reshape(-1, 4, 4)[:, :3, :3].astype(np.float64)
        singular = np.flatnonzero(np.abs(np.linalg.det(square)) < 1e-12)
        if key in INVERTED and len(singular):
            raise DataError(f'{where}: {key}: matrix {singular[0]} has no inverse; mend the calibration')
    # both ways from the LiDAR to a picture have to be one
    ways = (
        matrices[name].astype(np.float64) for name in ('camera_intrinsics', 'camera2lidar', 'lidar2image')
    )
    for index, (intrinsics, pose, seen) in enumerate(zip(*ways, strict=True)):
        gap = np.abs(intrinsics @ np.linalg.inv(pose) - seen)[:3].max()
        if not gap <= AGREES * np.abs(seen[:3]).max():
            raise DataError(
                f'{where}: matrices of camera {index} disagree: lidar2image is not camera_intrinsics times '
                f'the inverse of camera2lidar (largest difference {gap:.3g}); put all in one order'
            )
