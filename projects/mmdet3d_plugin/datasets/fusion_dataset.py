"""nuScenes as moments of all cameras and the LiDAR, each with its calibration."""

from typing import Any

import numpy as np
from mmdet.datasets import DATASETS
from mmdet3d.datasets import NuScenesDataset

from .nuscenes_dataset import camera_inputs


@DATASETS.register_module()
class FusionNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus the matrices that BEVFusion takes.

    Infos are those of mmdet3d's `create_data.py`. Source: mit-han-lab/bevfusion db75150,
    mmdet3d/datasets/nuscenes_dataset.py:150-218.
    """

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return what the pipeline starts from.

        Returns:
            What mmdet3d gives, and (N, 4, 4) float32 of the cameras in the order of the info:
            `camera_intrinsics`, `camera2lidar`, `lidar2image` and `img_aug_matrix` (unit matrices), with
            `lidar_aug_matrix` (4, 4), too.

        Raises:
            DataError: a calibration that is missing, not finite or singular.
        """
        data, info = super().get_data_info(index), self.data_infos[index]
        found = camera_inputs(info.get('cams') or {}, f'{self.ann_file}: sample {info["token"]}')
        count = len(found['intrinsics'])
        poses = [np.linalg.inv(matrix.astype(np.float64)) for matrix in found['extrinsics']]
        data.update(
            img_filename=found['img_filename'],
            camera_intrinsics=np.float32(found['intrinsics']),
            camera2lidar=np.float32(poses),
            lidar2image=np.float32(found['lidar2img']),
            img_aug_matrix=np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
            lidar_aug_matrix=np.eye(4, dtype=np.float32),
        )
        return data
