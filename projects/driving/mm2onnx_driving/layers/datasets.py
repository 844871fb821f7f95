"""nuScenes as a stream of multi-camera key frames, in scenes.

Glossary: N cameras.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets import DATASETS, PIPELINES
from mmdet3d.datasets import NuScenesDataset
from PIL import Image
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


# nuScenes for BEVDet: pictures of cameras and their own poses.
#
# Source: HuangJunJie2017/BEVDet f71858d, datasets/pipelines/loading.py:805-1023, nuscenes_dataset.py.
# Glossary: N cameras.


MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Values of R, G, B, subtracted from B, G, R, as upstream for its published weights."""


def resize_and_crop(config: Mapping[str, Any]) -> tuple[float, tuple[int, int], tuple[int, int]]:
    """Return scale, (width, height) after the resize, and (left, top) of the crop."""
    (height, width), (source_height, source_width) = config['input_size'], config['src_size']
    scale = width / source_width + config.get('resize_test', 0.0)
    size = int(source_width * scale), int(source_height * scale)
    top = int((1 - np.mean(config['crop_h'])) * size[1]) - height
    return scale, size, (int(max(0, size[0] - width) / 2), top)


def matrix_of(entry: Mapping[str, Any], name: str, title: str) -> np.ndarray:
    """Return NAME_rotation and NAME_translation of an info as (4, 4) float32."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = Quaternion(read_calibration(entry, f'{name}_rotation', title, (4,))).rotation_matrix
    matrix[:3, 3] = read_calibration(entry, f'{name}_translation', title, (3,))
    return matrix


@registered_if_named(PIPELINES)
class PrepareImageInputs:
    """Loads the present pictures: `img_inputs` without bda and B."""

    def __init__(
        self, data_config: Mapping[str, Any], is_train: bool = False, sequential: bool = False
    ) -> None:
        self.data_config = data_config

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        scale, size, (left, top) = resize_and_crop(self.data_config)
        height, width = self.data_config['input_size']
        images, poses, egos, intrins, files = [], [], [], [], []
        for name in self.data_config['cams']:
            camera = results['curr']['cams'][name]
            with Image.open(camera['data_path']) as picture:
                resized = picture.convert('RGB').resize(size)
            cropped = np.array(resized.crop((left, top, left + width, top + height)))
            normalised = mmcv.imnormalize(cropped, np.float32(MEAN), np.float32(STD), to_rgb=True)
            images.append(torch.from_numpy(normalised).permute(2, 0, 1).contiguous())
            poses.append(matrix_of(camera, 'sensor2ego', name))
            egos.append(matrix_of(camera, 'ego2global', name))
            intrins.append(np.float32(read_intrinsics(camera, name)))
            files.append(camera['data_path'])
        rotation, translation = np.diag(np.float32([scale, scale, 1])), np.float32([-left, -top, 0])
        matrices = poses, egos, intrins, [rotation] * len(files), [translation] * len(files)
        results['img_inputs'] = (
            torch.stack(images),
            *(torch.from_numpy(np.stack(rows)) for rows in matrices),
        )
        return results | dict(img_filename=files)


@registered_if_named(PIPELINES)
class LoadAnnotationsBEVDepth:
    """Appends bda, the unit matrix at test time, to `img_inputs`."""

    def __init__(self, bda_aug_conf: Any = None, classes: Sequence[str] = (), is_train: bool = False) -> None:
        pass

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results['img_inputs'] = (*results['img_inputs'], torch.eye(3))
        return results


@registered_if_named(DATASETS)
class BEVDetNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set with an info as `curr`, for results in the key ego frame."""

    def __init__(self, pipeline: Sequence[Mapping[str, Any]], **config: Any) -> None:
        super().__init__(pipeline=pipeline, **config)
        loader = next(step for step in pipeline if step['type'] == PrepareImageInputs.__name__)
        self.key_camera = loader['data_config']['cams'][0]

    def get_data_info(self, index: int) -> dict[str, Any]:
        info = self.data_infos[index]
        return dict(
            curr=info,
            adjacent=(),  # earlier pictures: the memory has their maps
            ann_infos=([], []),  # which the repository's LoadAnnotationsBEVDepth reads at test time, too
            pts_filename=info['lidar_path'],
            sample_idx=info['token'],
            scene_token=info.get('scene_token'),
            timestamp=info['timestamp'] / 1e6,
        )

    def _format_bbox(self, results: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> Any:
        moved = []
        for info, result in zip(self.data_infos, results, strict=True):
            title = str(info['token'])
            key2global = matrix_of(info['cams'][self.key_camera], 'ego2global', title).astype(np.float64)
            motion = np.linalg.inv(lidar_to_global(info, title).astype(np.float64)) @ key2global
            boxes = result['boxes_3d'].tensor.double()
            turn = torch.from_numpy(motion[:3, :3])
            middles = boxes[:, :3] @ turn.T + torch.from_numpy(motion[:3, 3])
            yaws = boxes[:, 6:7] + float(np.arctan2(motion[1, 0], motion[0, 0]))
            speeds = boxes[:, 7:9] @ turn[:2, :2].T
            rows = torch.cat([middles, boxes[:, 3:6], yaws, speeds], 1).float()
            moved.append(dict(result, boxes_3d=type(result['boxes_3d'])(rows, box_dim=9)))
        return super()._format_bbox(moved, *args, **kwargs)


# nuScenes for Sparse4D: cameras, and the LiDAR's pose in the map, in float64.
#
# Source: HorizonRobotics/Sparse4D c41df4b, datasets/nuscenes_3d_det_track_dataset.py and
# datasets/pipelines/{augment,transform}.py.
# Glossary: N cameras, H, W pictures in pixels.


def read_pose(record: dict[str, Any], name: str, title: str) -> np.ndarray:
    """Return the pose (4, 4) float64 of `NAME_rotation`, matrix or quaternion, and `NAME_translation`, m."""
    rotation = read_calibration(record, f'{name}_rotation', title, (3, 3), (4,))
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(rotation).rotation_matrix if rotation.shape == (4,) else rotation
    matrix[:3, 3] = read_calibration(record, f'{name}_translation', title, (3,))
    return matrix


@registered_if_named(DATASETS)
class NuScenes3DDetTrackDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus matrices of cameras and the pose of the LiDAR."""

    def __init__(
        self,
        data_aug_conf: dict[str, Any],
        tracking: bool = False,
        tracking_threshold: float = 0.2,
        version: str = '',
        **settings: Any,
    ) -> None:
        self.data_aug_conf, self.tracking_threshold = data_aug_conf, tracking_threshold
        super().__init__(**settings)

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the pipeline's first dict.

        `sample_idx`, `scene_token`; `timestamp` s; `lidar2global` (4, 4) float64; `aug_config`, `resize` and
        `crop` (left, top, right, bottom); per camera `img_filename`, `lidar2img` (4, 4) float64, in original
        pixels.
        """
        info = self.data_infos[index]
        title = f'{self.ann_file}: sample {info["token"]}'
        if not info.get('cams'):
            raise DataError(f'{title}: got no camera in `cams`, expected at least one')
        poses = {name: read_pose(info, name, title) for name in ('ego2global', 'lidar2ego')}
        lidar2img = []
        for name, camera in info['cams'].items():
            intrinsic = np.eye(4)
            intrinsic[:3, :3] = read_intrinsics(camera, f'{title}, {name}')
            lidar2img.append(intrinsic @ np.linalg.inv(read_pose(camera, 'sensor2lidar', f'{title}, {name}')))
        return dict(
            sample_idx=info['token'],
            scene_token=info.get('scene_token', ''),
            timestamp=info['timestamp'] / 1e6,
            lidar2global=poses['ego2global'] @ poses['lidar2ego'],
            img_filename=[camera['data_path'] for camera in info['cams'].values()],
            lidar2img=lidar2img,
            aug_config=self.test_augmentation(),
        )

    def test_augmentation(self) -> dict[str, Any]:
        """Return the factor `resize`, and `crop` (left, top, right, bottom), resized pixels."""
        conf = self.data_aug_conf
        height, width = conf['final_dim']
        resize = max(height / conf['H'], width / conf['W'])
        resized_width, resized_height = int(conf['W'] * resize), int(conf['H'] * resize)
        top = int((1 - np.mean(conf['bot_pct_lim'])) * resized_height) - height
        left = int(max(0, resized_width - width) / 2)
        return dict(resize=resize, crop=(left, top, left + width, top + height))


@registered_if_named(PIPELINES)
class ResizeCropFlipImage:
    """Resizes and crops all cameras by `aug_config`, with their `lidar2img`."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change `img` (H, W, 3) and `lidar2img` (4, 4); add `img_shape` (h, w)."""
        resize, crop = results['aug_config']['resize'], results['aug_config']['crop']
        matrix = np.diag([resize, resize, 1.0, 1.0])
        matrix[:2, 2] = -np.array(crop[:2])
        images = []
        for image in results['img']:
            size = int(image.shape[1] * resize), int(image.shape[0] * resize)
            picture = Image.fromarray(np.uint8(image)).resize(size).crop(crop)
            images.append(np.array(picture).astype(np.float32))
        results['img'], results['img_shape'] = images, [image.shape[:2] for image in images]
        results['lidar2img'] = [matrix @ camera for camera in results['lidar2img']]
        return results


@registered_if_named(PIPELINES)
class NuScenesSparse4DAdaptor:
    """Makes Sparse4D's inputs: a tensor of pictures, and numpy arrays."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `projection_mat` (N, 4, 4), `image_wh` (N, 2), and `T_global` (4, 4), LiDAR to global.

        `img` becomes a DataContainer (N, 3, H, W).
        """
        sizes = np.array(results['img_shape'], np.float32)[:, :2]
        results['projection_mat'] = np.float32(np.stack(results['lidar2img']))
        results['image_wh'] = np.ascontiguousarray(sizes[:, ::-1])
        results['T_global'] = results['lidar2global']
        results['T_global_inv'] = np.linalg.inv(results['lidar2global'])
        images = np.stack([image.transpose(2, 0, 1) for image in results['img']])
        results['img'] = DataContainer(torch.from_numpy(np.ascontiguousarray(images)), stack=True)
        if 'gt_ego_fut_cmd' in results:
            command = torch.from_numpy(np.array(results['gt_ego_fut_cmd'], np.float32))
            results['gt_ego_fut_cmd'] = DataContainer(command, stack=True, pad_dims=None)
        return results
