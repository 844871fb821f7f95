# mmdet3d's ImVoxelNet in small, for generated pictures as those of KITTI.
from mmdeploy_ext.base.config import mmdet3d_config
from projects.configs import monocular

_base_ = [mmdet3d_config('imvoxelnet/imvoxelnet_4x8_kitti-3d-car.py')]
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=8,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    neck_3d=dict(in_channels=8, out_channels=16),
    bbox_head=dict(
        in_channels=16,
        feat_channels=16,
        anchor_generator=dict(ranges=[[-0.16, -19.84, -1.78, 39.84, 19.84, -1.78]]),
    ),
    n_voxels=[40, 36, 12],
    prior_generator=dict(ranges=[[-0.16, -19.84, -3.08, 39.84, 19.84, 0.76]]),
)
data = monocular.kitti_infos()
