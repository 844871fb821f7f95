"""nuScenes as a stream of multi-camera key frames, in scenes.

Glossary: N cameras.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets import DATASETS
from mmdet3d.datasets import NuScenesDataset
from pyquaternion import Quaternion

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.preprocess.cam2img import intrinsics_problem
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

CAMERA_KEYS = ('img_timestamp', 'img_filename', 'lidar2img', 'intrinsics', 'extrinsics')


@registered_if_named(DATASETS)
class CustomNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus cameras and poses, for tests.

    Source: exiawsh/StreamPETR 95f6470, datasets/nuscenes_dataset.py.
    """

    def __init__(
        self,
        collect_keys: Sequence[str] = (),
        queue_length: int = 1,
        seq_mode: bool = False,
        seq_split_num: int | str = 1,
        num_frame_losses: int = 1,
        random_length: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the pipeline's first dict.

        `ego_pose`, `ego_pose_inv` (4, 4) float32: LiDAR to global and back; `timestamp` float64 s;
        `sample_idx`, `scene_token`, `frame_idx`, `prev_idx`, `next_idx`, `pts_filename`, `sweeps`; per camera
        `img_filename`, `img_timestamp` (s), `intrinsics` (4, 4) float64, `extrinsics` (4, 4) float32 LiDAR to
        camera, `lidar2img` (4, 4) float64, to original pixels.
        """
        info = self.data_infos[index]
        name = f'{self.ann_file}: sample {info["token"]}'
        ego_pose = lidar_to_global(info, name)
        data = dict(
            sample_idx=info['token'],
            pts_filename=info['lidar_path'],
            sweeps=info['sweeps'],
            ego_pose=ego_pose,
            ego_pose_inv=rigid_inverse(ego_pose),
            prev_idx=info['prev'],
            next_idx=info['next'],
            scene_token=info['scene_token'],
            frame_idx=info['frame_idx'],
            timestamp=info['timestamp'] / 1e6,
        )
        if self.modality['use_camera']:
            data.update(camera_inputs(info.get('cams') or {}, name))
        return data


@registered_if_named(DATASETS)
class FusionNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus the matrices of BEVFusion.

    Source: mit-han-lab/bevfusion db75150, mmdet3d/datasets/nuscenes_dataset.py:150-218.
    """

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return mmdet3d's entries, and the matrices.

        Cameras have (N, 4, 4) float32: `camera_intrinsics`, `camera2lidar`, `lidar2image` and
        `img_aug_matrix` (unit matrices); `lidar_aug_matrix` is (4, 4).
        """
        data, info = super().get_data_info(index), self.data_infos[index]
        cameras = camera_inputs(info.get('cams') or {}, f'{self.ann_file}: sample {info["token"]}')
        count = len(cameras['intrinsics'])
        poses = [np.linalg.inv(matrix.astype(np.float64)) for matrix in cameras['extrinsics']]
        data.update(
            img_filename=cameras['img_filename'],
            camera_intrinsics=np.float32(cameras['intrinsics']),
            camera2lidar=np.float32(poses),
            lidar2image=np.float32(cameras['lidar2img']),
            img_aug_matrix=np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
            lidar_aug_matrix=np.eye(4, dtype=np.float32),
        )
        return data


def lidar_to_global(info: dict[str, Any], sample: str) -> np.ndarray:
    """Return ego-to-global @ LiDAR-to-ego, (4, 4) float32; `sample` names the info in messages."""

    def matrix(name: str) -> np.ndarray:
        turn = Quaternion(read_calibration(info, f'{name}_rotation', sample, (4,))).rotation_matrix
        return rigid_matrix(turn, read_calibration(info, f'{name}_translation', sample, (3,)))

    return matrix('ego2global') @ matrix('lidar2ego')


def camera_inputs(cameras: dict[str, dict[str, Any]], sample: str) -> dict[str, list[Any]]:
    """Return lists of file names, time stamps (s) and matrices of all cameras."""
    if not cameras:
        raise DataError(f'{sample}: got no camera in `cams`, expected at least one')
    rows = []
    for name, camera in cameras.items():
        title = f'{sample}, {name}'
        turn = read_calibration(camera, 'sensor2lidar_rotation', title, (3, 3))
        pose = rigid_matrix(turn, read_calibration(camera, 'sensor2lidar_translation', title, (3,)))
        extrinsic, intrinsic = rigid_inverse(pose), np.eye(4)
        intrinsic[:3, :3] = read_intrinsics(camera, title)
        time_s = camera['timestamp'] / 1e6
        rows.append((time_s, camera['data_path'], intrinsic @ extrinsic, intrinsic, extrinsic))
    return dict(zip(CAMERA_KEYS, map(list, zip(*rows, strict=True)), strict=True))


def rigid_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the float32 matrix [R t; 0 1] of a rotation (3, 3) and a translation (3,), m."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def rigid_inverse(matrix: np.ndarray) -> np.ndarray:
    """Return [R^T, -R^T t; 0 1] of a rigid float32 (4, 4)."""
    rotation_t = matrix[:3, :3].T
    return rigid_matrix(rotation_t, -(rotation_t @ matrix[:3, 3]))


def read_intrinsics(camera: dict[str, Any], title: str) -> np.ndarray:
    """Return `cam_intrinsic` (3, 3) of a camera of an info; float64."""
    matrix = read_calibration(camera, 'cam_intrinsic', title, (3, 3))
    if problem := intrinsics_problem(matrix):
        raise DataError(f'{title}: cam_intrinsic{problem}')
    return matrix


def read_calibration(record: dict[str, Any], key: str, title: str, *shapes: tuple[int, ...]) -> np.ndarray:
    """Return a matrix (3, 3), a quaternion (4,) or a translation (3,) of an info; float64."""
    if key not in record:
        raise DataError(f'{title}: has no {key}; make the info file again with {tool("synthetic infos")}')
    value = np.asarray(record[key], dtype=np.float64)
    if value.shape not in shapes or not np.isfinite(value).all():
        sizes = ' or '.join(' x '.join(map(str, shape)) for shape in shapes)
        raise DataError(f'{title}: {key}: got {value.tolist()}, expected {sizes} finite numbers')
    is_singular = abs(np.linalg.det(value)) < 1e-9 if value.ndim == 2 else len(value) == 4 and not value.any()
    if is_singular:
        raise DataError(f'{title}: {key} is singular: {value.tolist()}')
    return value


# ---- for BEVFormer: cameras, and a record of the car's motion


@registered_if_named(DATASETS)
class BevNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus the matrices of cameras and the motion of the car.

    Infos need a `scene_token`; acceleration, rotation rate and velocity of a `can_bus` (18,) are used.

    Source: fundamentalvision/BEVFormer 66b65f3, datasets/nuscenes_dataset.py.
    """

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the pipeline's first dict.

        `can_bus` (18,) float64: position x, y, z in the map in m; w of the orientation four times, as
        upstream; acceleration, rotation rate and velocity, or 0; heading in the map in rad and degrees, from
        0 to a whole turn. `ego_pose` (4, 4) float32, LiDAR to global; `timestamp` s; `sample_idx`,
        `scene_token`; per camera `img_filename`, `lidar2img` and `intrinsics` (4, 4) float64, for original
        pixels.
        """
        info = self.data_infos[index]
        name = f'{self.ann_file}: sample {info["token"]}'
        cameras = camera_inputs(info.get('cams') or {}, name)
        if 'scene_token' not in info:
            raise DataError(
                f'{name}: has no scene_token; make the info file again with {tool("synthetic infos")}'
            )
        return dict(
            sample_idx=info['token'],
            scene_token=info['scene_token'],
            timestamp=info['timestamp'] / 1e6,
            ego_pose=lidar_to_global(info, name),
            can_bus=motion_of_car(info, name),
            img_filename=cameras['img_filename'],
            lidar2img=cameras['lidar2img'],
            intrinsics=cameras['intrinsics'],
        )


def motion_of_car(info: dict[str, Any], sample: str) -> np.ndarray:
    """Return the `can_bus` (18,); `sample` names the info in messages."""
    record = np.zeros(18)
    if info.get('can_bus') is not None:
        record[:] = read_calibration(info, 'can_bus', sample, (18,))
    rotation = Quaternion(info['ego2global_rotation'])
    record[:3], record[3:7] = info['ego2global_translation'], rotation.real
    ahead = rotation.rotate([1.0, 0.0, 0.0])
    degrees = math.atan2(ahead[1], ahead[0]) / math.pi * 180
    if degrees < 0:
        degrees += 360
    record[-2], record[-1] = degrees / 180 * math.pi, degrees
    return record
