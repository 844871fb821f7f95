"""nuScenes for Sparse4D: cameras, and the LiDAR's pose in the map, in float64.

Source: HorizonRobotics/Sparse4D c41df4b, datasets/nuscenes_3d_det_track_dataset.py and
datasets/pipelines/{augment,transform}.py.
Glossary: N cameras, H, W pictures in pixels.
"""

from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets import DATASETS
from mmdet.datasets.builder import PIPELINES
from mmdet3d.datasets import NuScenesDataset
from PIL import Image
from pyquaternion import Quaternion

from mm2onnx_driving.layers.datasets.nuscenes_dataset import read_calibration, read_intrinsics
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


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
