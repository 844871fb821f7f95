"""nuScenes for BEVDet: pictures of cameras and their own poses.

Source: HuangJunJie2017/BEVDet f71858d, datasets/pipelines/loading.py:805-1023, nuscenes_dataset.py.
Glossary: N cameras.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.datasets import DATASETS, PIPELINES
from mmdet3d.datasets import NuScenesDataset
from PIL import Image
from pyquaternion import Quaternion

from mm2onnx_driving.layers.datasets.nuscenes_dataset import (
    lidar_to_global,
    read_calibration,
    read_intrinsics,
)
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

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
