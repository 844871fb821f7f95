"""Info files of nuScenes, as mmdet3d 1.0.0rc6 and StreamPETR read them, from the devkit's tables.

Sources of the format: mmdetection3d v1.0.0rc6 and exiawsh/StreamPETR@68c1bdf,
`tools/data_converter/nuscenes_converter.py`.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pyquaternion import Quaternion
from rich.progress import track

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import atomic_path, check_writable
from mmdeploy_ext.spec.preparation import CAMERAS

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import Box

    Record = dict[str, Any]

LIDAR = 'LIDAR_TOP'
"""Channel with the key frames."""
SPLITS = {'v1.0-trainval': ('train', 'val'), 'v1.0-mini': ('mini_train', 'mini_val'), 'v1.0-test': ('test',)}
"""Version -> its splits."""
ONLY_TEMPORAL = ('prev', 'next', 'scene_token', 'frame_idx', 'gt_ego_fut_cmd')
"""Entries that plain mmdet3d infos lack."""
PLAN_FRAMES, TURNED_M = 6, 2.0
"""Key frames after which a command is over, and metres to a side that are a turn."""


def create_infos(
    root: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    tag: str,
    version: str = 'v1.0-trainval',
    max_sweeps: int = 10,
    quiet: bool = False,
) -> dict[Path, int]:
    """Write the info files of a version's splits; return path -> number of key frames.

    `root` has the tables, `samples/` and `maps/`; file names begin with `tag` (`info_paths`). 2D boxes for
    training are left out.
    """
    if max_sweeps < 0:
        raise UsageError(f'--max-sweeps: got {max_sweeps}, expected 0 or more')
    if not tag or '/' in tag:
        raise UsageError(f'--extra-tag: got {tag!r}, expected the beginning of a file name')
    check_root(Path(root), version)
    targets = {split: info_paths(out_dir, tag, split.removeprefix('mini_')) for split in SPLITS[version]}
    for temporal_path, plain_path in targets.values():
        check_writable(temporal_path)
        check_writable(plain_path)
    nusc = load_tables(Path(root), version)
    infos_of_split = {split: split_infos(nusc, split, max_sweeps, quiet) for split in targets}
    if not any(infos_of_split.values()):
        refuse_empty(nusc)
    num_key_frames = {}
    for split, infos in infos_of_split.items():
        temporal_path, plain_path = targets[split]
        plain = [{key: value for key, value in info.items() if key not in ONLY_TEMPORAL} for info in infos]
        for path, rows in ((temporal_path, infos), (plain_path, plain)):
            with atomic_path(path) as temporary, open(temporary, 'wb') as stream:
                pickle.dump({'infos': rows, 'metadata': {'version': version}}, stream, protocol=4)
            num_key_frames[path] = len(rows)
    return num_key_frames


def info_paths(out_dir: str | os.PathLike[str], tag: str, split: str) -> tuple[Path, Path]:
    stem = tag.removesuffix('2d')
    return Path(out_dir) / f'{stem}2d_temporal_infos_{split}.pkl', Path(out_dir) / f'{stem}_infos_{split}.pkl'


def split_infos(nusc: NuScenes, split: str, max_sweeps: int, quiet: bool) -> list[dict[str, Any]]:
    from nuscenes.utils.splits import create_splits_scenes

    scenes = present_scenes(nusc, create_splits_scenes()[split])
    samples = [pair for scene in scenes for pair in enumerate(scene_samples(nusc, scene))]
    for _, sample in samples:
        check_sample(nusc, sample)
    progress = track(samples, f'{split}: {len(scenes)} scenes', console=cli.stderr(), disable=quiet)
    return [
        sample_info(nusc, sample, frame_idx, max_sweeps, annotated=split != 'test')
        for frame_idx, sample in progress
    ]


# --- tables --------------------------------------------------------------------------------------------


def check_root(root: Path, version: str) -> None:
    if version not in SPLITS:
        raise UsageError(f'--version: got {version!r}, expected one of {", ".join(SPLITS)}')
    if not root.is_dir():
        raise DataError(
            f'{root}: no such folder; pass the folder with {version}/ and samples/ as --root-path'
        )
    if not (root / version).is_dir():
        versions = sorted(path.name for path in root.glob('v*') if path.is_dir())
        raise DataError(
            f'{root / version}: no such folder; versions there: {", ".join(versions) or "none"} '
            f'(choose with --version)'
        )


def load_tables(root: Path, version: str) -> NuScenes:
    check_root(root, version)
    from nuscenes.nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except AssertionError as error:  # the devkit's own words: "map mask ... does not exist"
        raise DataError(f'{root / version}: {error}') from error


def scene_samples(nusc: NuScenes, scene: Record) -> list[Record]:
    samples, token = [], scene['first_sample_token']
    while token:
        samples.append(nusc.get('sample', token))
        token = samples[-1]['next']
    return samples


def check_sample(nusc: NuScenes, sample: Record) -> None:
    """Raise DataError for a key frame without a camera, the LiDAR, or a file."""
    for channel in (*CAMERAS, LIDAR):
        if channel not in sample['data']:
            raise DataError(f'{nusc.version}/sample_data.json: key frame {sample["token"]} has no {channel}')
        path = Path(nusc.get_sample_data_path(sample['data'][channel]))
        if not path.is_file():
            raise DataError(
                f'{path}: no such file, but {nusc.version}/sample_data.json lists it '
                f'(key frame {sample["token"]}); unpack the set again'
            )


def present_scenes(nusc: NuScenes, names: list[str]) -> list[Record]:
    """Return the scenes with the LiDAR file of their first key frame."""
    scenes = []
    for scene in nusc.scene:
        data = nusc.get('sample', scene['first_sample_token'])['data']
        is_present = LIDAR not in data or Path(nusc.get_sample_data_path(data[LIDAR])).is_file()
        if scene['name'] in names and is_present:
            scenes.append(scene)
    return scenes


def refuse_empty(nusc: NuScenes) -> NoReturn:
    """Raise DataError: no scene of any split is there."""
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    listed = {name for split in SPLITS[nusc.version] for name in splits[split]}
    if not any(scene['name'] in listed for scene in nusc.scene):
        raise DataError(
            f'{nusc.dataroot}/{nusc.version}: none of the {len(nusc.scene)} scenes is in the split lists of '
            f'the devkit ({", ".join(SPLITS[nusc.version])})'
        )
    raise DataError(
        f'{nusc.dataroot}: none of the {len(nusc.scene)} scenes has its first {LIDAR} sweep; '
        f'unpack samples/ beside {nusc.version}/'
    )


# --- key frames ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SensorPose:
    """The pose of a sensor at one time.

    Attributes:
        calibration: sensor to ego.
        ego_pose: ego to global.
        to_global: sensor to global (4, 4) float64.
    """

    calibration: Record
    ego_pose: Record
    to_global: np.ndarray


def _sensor_pose(nusc: NuScenes, data: Record) -> SensorPose:
    calibration = nusc.get('calibrated_sensor', data['calibrated_sensor_token'])
    ego_pose = nusc.get('ego_pose', data['ego_pose_token'])
    return SensorPose(calibration, ego_pose, _matrix(ego_pose) @ _matrix(calibration))


def _matrix(record: Record) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(record['rotation']).rotation_matrix
    matrix[:3, 3] = record['translation']
    return matrix


def _data_path(nusc: NuScenes, data: Record) -> str:
    path = os.path.join(str(nusc.dataroot), data['filename'])
    return path.removeprefix(f'{os.getcwd()}/')


def sample_info(
    nusc: NuScenes, sample: Record, frame_idx: int, max_sweeps: int, annotated: bool
) -> dict[str, Any]:
    """Return the info of a key frame; `frame_idx` counts in its scene, from 0.

    `sensor2lidar_rotation` (3, 3) and `sensor2lidar_translation` (3,) move points from a sensor at its time
    into the key frame's LiDAR frame: R p + t.
    """
    data = nusc.get('sample_data', sample['data'][LIDAR])
    lidar = _sensor_pose(nusc, data)
    info = {
        'lidar_path': _data_path(nusc, data),
        'token': sample['token'],
        'prev': sample['prev'],
        'next': sample['next'],
        'frame_idx': frame_idx,
        'scene_token': sample['scene_token'],
        'sweeps': [],
        'cams': {},
        'lidar2ego_translation': lidar.calibration['translation'],
        'lidar2ego_rotation': lidar.calibration['rotation'],
        'ego2global_translation': lidar.ego_pose['translation'],
        'ego2global_rotation': lidar.ego_pose['rotation'],
        'timestamp': sample['timestamp'],
        'gt_ego_fut_cmd': command_of(nusc, sample, lidar),
    }
    while len(info['sweeps']) < max_sweeps and data['prev']:
        data = nusc.get('sample_data', data['prev'])
        info['sweeps'].append(_sensor_info(nusc, data, 'lidar', lidar))
    for camera in CAMERAS:
        data = nusc.get('sample_data', sample['data'][camera])
        calibration = nusc.get('calibrated_sensor', data['calibrated_sensor_token'])
        info['cams'][camera] = {
            **_sensor_info(nusc, data, camera, lidar),
            'cam_intrinsic': np.array(calibration['camera_intrinsic']),
        }
    if annotated:
        annotations = [nusc.get('sample_annotation', token) for token in sample['anns']]
        info.update(_annotations_3d(nusc, annotations, lidar))
    return info


def command_of(nusc: NuScenes, sample: Record, lidar: SensorPose) -> np.ndarray:
    """Return a 1 for right, left or straight on (3,), by where the car is `PLAN_FRAMES` later.

    Source: swc-17/SparseDrive ec0225d, tools/data_converter/nuscenes_converter.py.
    """
    for _ in range(PLAN_FRAMES):
        sample = nusc.get('sample', sample['next']) if sample['next'] else sample
    later = _sensor_pose(nusc, nusc.get('sample_data', sample['data'][LIDAR])).to_global[:, 3]
    aside = (np.linalg.inv(lidar.to_global) @ later)[0]
    return np.eye(3, dtype=np.float32)[0 if aside >= TURNED_M else 1 if aside <= -TURNED_M else 2]


def _sensor_info(nusc: NuScenes, data: Record, sensor_type: str, lidar: SensorPose) -> dict[str, Any]:
    pose = _sensor_pose(nusc, data)
    to_lidar = np.linalg.inv(lidar.to_global) @ pose.to_global
    return {
        'data_path': _data_path(nusc, data),
        'type': sensor_type,
        'sample_data_token': data['token'],
        'sensor2ego_translation': pose.calibration['translation'],
        'sensor2ego_rotation': pose.calibration['rotation'],
        'ego2global_translation': pose.ego_pose['translation'],
        'ego2global_rotation': pose.ego_pose['rotation'],
        'timestamp': data['timestamp'],
        'sensor2lidar_rotation': to_lidar[:3, :3],
        'sensor2lidar_translation': to_lidar[:3, 3],
    }


def _class_name(category: str) -> str | None:
    from nuscenes.eval.detection.utils import category_to_detection_name

    return category_to_detection_name(category)


def _boxes(nusc: NuScenes, annotations: list[Record], pose: SensorPose) -> list[Box]:
    boxes = [nusc.get_box(annotation['token']) for annotation in annotations]
    for box in boxes:
        for record in (pose.ego_pose, pose.calibration):
            box.translate(-np.array(record['translation']))
            box.rotate(Quaternion(record['rotation']).inverse)
    return boxes


def _annotations_3d(nusc: NuScenes, annotations: list[Record], lidar: SensorPose) -> dict[str, Any]:
    boxes = _boxes(nusc, annotations, lidar)
    rows = [[*box.center, *box.wlh[[1, 0, 2]], box.orientation.yaw_pitch_roll[0]] for box in boxes]
    velocities = [[*nusc.box_velocity(annotation['token'])[:2], 0] for annotation in annotations]
    velocities = np.array(velocities).reshape(-1, 3)
    num_lidar_pts, num_radar_pts = (
        np.array([annotation[key] for annotation in annotations], np.int64)
        for key in ('num_lidar_pts', 'num_radar_pts')
    )
    return {
        'gt_boxes': np.array(rows, np.float64).reshape(-1, 7),
        'gt_names': np.array([_class_name(box.name) or box.name for box in boxes], dtype=np.str_),
        'gt_velocity': (velocities @ lidar.to_global[:3, :3])[:, :2],
        'num_lidar_pts': num_lidar_pts,
        'num_radar_pts': num_radar_pts,
        'valid_flag': num_lidar_pts + num_radar_pts > 0,
    }
