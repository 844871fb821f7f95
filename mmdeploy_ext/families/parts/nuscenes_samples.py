"""One key frame of nuScenes as an entry of the info files, from the devkit's tables.

Boxes are rows x y z l w h yaw in the LiDAR frame of their key frame, centre of the box, yaw in radians
counter-clockwise from x (mmdet3d 1.0's `LiDARInstance3DBoxes` with `origin=(0.5, 0.5, 0.5)`); velocities are
vx vy in that frame, m/s, NaN where the devkit gives none.

Sources of the format, as facts: mmdetection3d v1.0.0rc6 `tools/data_converter/nuscenes_converter.py`,
exiawsh/StreamPETR@68c1bdf `tools/data_converter/nuscenes_converter.py`. Differs in: pictures are not opened,
their sizes come from `sample_data`; camera lists without boxes keep their last axis, (0, 4) or (0, 7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.families.parts.nuscenes_source import CAMERAS, LIDAR

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import Box

CLASSES = (
    'car', 'truck', 'trailer', 'bus', 'construction_vehicle',
    'bicycle', 'motorcycle', 'pedestrian', 'traffic_cone', 'barrier',
)  # fmt: skip
"""mmdet3d's order, which `labels2d` counts in."""


@dataclass(frozen=True)
class Frame:
    """A sensor's place at one time: `sensor_to_ego` and `ego_to_global` as records, and both as (4, 4)."""

    calibration: dict[str, Any]
    pose: dict[str, Any]

    @property
    def to_global(self) -> np.ndarray:
        """Return the sensor-to-global matrix (4, 4) float64."""
        return _matrix(self.pose) @ _matrix(self.calibration)


def _matrix(record: dict[str, Any]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(record['rotation']).rotation_matrix
    matrix[:3, 3] = record['translation']
    return matrix


def _frame(nusc: NuScenes, data: dict[str, Any]) -> Frame:
    return Frame(
        nusc.get('calibrated_sensor', data['calibrated_sensor_token']),
        nusc.get('ego_pose', data['ego_pose_token']),
    )


def _shown_path(nusc: NuScenes, data: dict[str, Any]) -> str:
    """Give the path of a file, relative to the working folder when it lies below it, as mmdet3d does."""
    path = os.path.join(str(nusc.dataroot), data['filename'])
    return path.removeprefix(f'{os.getcwd()}/')


def _sensor_info(nusc: NuScenes, data: dict[str, Any], kind: str, lidar: Frame) -> dict[str, Any]:
    """Describe one camera picture or sweep, with its place in the key frame's LiDAR frame."""
    frame = _frame(nusc, data)
    to_lidar = np.linalg.inv(lidar.to_global) @ frame.to_global
    return {
        'data_path': _shown_path(nusc, data),
        'type': kind,
        'sample_data_token': data['token'],
        'sensor2ego_translation': frame.calibration['translation'],
        'sensor2ego_rotation': frame.calibration['rotation'],
        'ego2global_translation': frame.pose['translation'],
        'ego2global_rotation': frame.pose['rotation'],
        'timestamp': data['timestamp'],
        'sensor2lidar_rotation': to_lidar[:3, :3],
        'sensor2lidar_translation': to_lidar[:3, 3],
    }


def _sweeps(nusc: NuScenes, data: dict[str, Any], count: int, lidar: Frame) -> list[dict[str, Any]]:
    """Describe up to `count` earlier sweeps, the last one first."""
    sweeps = []
    while len(sweeps) < count and data['prev']:
        data = nusc.get('sample_data', data['prev'])
        sweeps.append(_sensor_info(nusc, data, 'lidar', lidar))
    return sweeps


def _class_name(category: str) -> str | None:
    from nuscenes.eval.detection.utils import category_to_detection_name

    return category_to_detection_name(category)


def _boxes(nusc: NuScenes, records: list[dict[str, Any]], frame: Frame) -> list[Box]:
    """Give the boxes of annotations in the frame of a sensor."""
    boxes = [nusc.get_box(record['token']) for record in records]
    for box in boxes:
        for place in (frame.pose, frame.calibration):
            box.translate(-np.array(place['translation']))
            box.rotate(Quaternion(place['rotation']).inverse)
    return boxes


def _annotations_3d(nusc: NuScenes, records: list[dict[str, Any]], lidar: Frame) -> dict[str, Any]:
    boxes = _boxes(nusc, records, lidar)
    rows = [[*box.center, *box.wlh[[1, 0, 2]], box.orientation.yaw_pitch_roll[0]] for box in boxes]
    velocity = np.array([[*nusc.box_velocity(record['token'])[:2], 0] for record in records]).reshape(-1, 3)
    points = {
        key: np.array([record[key] for record in records], np.int64)
        for key in ('num_lidar_pts', 'num_radar_pts')
    }
    names = [_class_name(box.name) or box.name for box in boxes]
    return {
        'gt_boxes': np.array(rows, np.float64).reshape(-1, 7),
        'gt_names': np.array(names, dtype=np.str_),
        'gt_velocity': (velocity @ lidar.to_global[:3, :3])[:, :2],
        **points,
        'valid_flag': points['num_lidar_pts'] + points['num_radar_pts'] > 0,
    }


def clip_to_canvas(
    corners: np.ndarray, intrinsic: np.ndarray, size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Bound the part of a 3D box that lies in a picture of (W, H) px: x1 y1 x2 y2; None outside it.

    That is the convex hull of the projected corners, given as (3, 8) m in the camera frame; those behind the
    camera are left out, as upstream does.
    """
    from shapely.geometry import MultiPoint, box

    ahead = corners[:, corners[2] > 0]
    if not ahead.size:
        return None
    points = intrinsic @ ahead
    hull = MultiPoint((points[:2] / points[2]).T).convex_hull.intersection(box(0, 0, *size))
    return None if hull.is_empty else hull.bounds


def _camera_rows(
    nusc: NuScenes, records: list[dict[str, Any]], data: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield one row per object of the ten classes that is at least a pixel wide and high in a picture."""
    frame = _frame(nusc, data)
    intrinsic, size = np.array(frame.calibration['camera_intrinsic']), (data['width'], data['height'])
    for record, box in zip(records, _boxes(nusc, records, frame), strict=True):
        name = _class_name(box.name)
        if name is None or box.center[2] <= 0:
            continue
        bounds = clip_to_canvas(box.corners(), intrinsic, size)
        if bounds is None or bounds[2] - bounds[0] < 1 or bounds[3] - bounds[1] < 1:
            continue
        x, y, depth = intrinsic @ box.center
        yield {
            'bboxes2d': bounds,
            'labels2d': CLASSES.index(name),
            'centers2d': (x / depth, y / depth),
            'depths': depth,
            'visibilities': record['visibility_token'],
            'bboxes3d_cams': [*box.center, *box.wlh[[1, 2, 0]], -box.orientation.yaw_pitch_roll[0]],
        }


def _annotations_2d(nusc: NuScenes, records: list[dict[str, Any]], sample: dict[str, Any]) -> dict[str, list]:
    """Give the lists per camera: float32 arrays, labels int64, visibility tokens as strings."""
    shapes = {'bboxes2d': (-1, 4), 'bboxes3d_cams': (-1, 7), 'centers2d': (-1, 2), 'depths': (-1,)}
    info: dict[str, list] = {key: [] for key in (*shapes, 'labels2d', 'bboxes_ignore', 'visibilities')}
    for camera in CAMERAS:
        rows = list(_camera_rows(nusc, records, nusc.get('sample_data', sample['data'][camera])))
        for key, shape in shapes.items():
            info[key].append(np.array([row[key] for row in rows], np.float32).reshape(shape))
        info['labels2d'].append(np.array([row['labels2d'] for row in rows], np.int64))
        info['visibilities'].append([row['visibilities'] for row in rows])
        info['bboxes_ignore'].append(np.zeros((0, 4), np.float32))
    return info


def sample_info(
    nusc: NuScenes, sample: dict[str, Any], frame_idx: int, *, max_sweeps: int = 10, annotated: bool = True
) -> dict[str, Any]:
    """Describe one key frame, number `frame_idx` of its scene, as an entry of `infos`.

    Up to `max_sweeps` LiDAR sweeps before it are listed; versions that are not `annotated` have no ground
    truth.
    """
    data = nusc.get('sample_data', sample['data'][LIDAR])
    lidar = _frame(nusc, data)
    info = {
        'lidar_path': _shown_path(nusc, data),
        'token': sample['token'],
        'prev': sample['prev'],
        'next': sample['next'],
        'frame_idx': frame_idx,
        'scene_token': sample['scene_token'],
        'sweeps': _sweeps(nusc, data, max_sweeps, lidar),
        'cams': {},
        'lidar2ego_translation': lidar.calibration['translation'],
        'lidar2ego_rotation': lidar.calibration['rotation'],
        'ego2global_translation': lidar.pose['translation'],
        'ego2global_rotation': lidar.pose['rotation'],
        'timestamp': sample['timestamp'],
    }
    for camera in CAMERAS:
        picture = nusc.get('sample_data', sample['data'][camera])
        calibration = nusc.get('calibrated_sensor', picture['calibrated_sensor_token'])
        info['cams'][camera] = {
            **_sensor_info(nusc, picture, camera, lidar),
            'cam_intrinsic': np.array(calibration['camera_intrinsic']),
        }
    if annotated:
        records = [nusc.get('sample_annotation', token) for token in sample['anns']]
        info.update(_annotations_3d(nusc, records, lidar), **_annotations_2d(nusc, records, sample))
    return info
