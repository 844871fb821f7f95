# mmdet3d's MVX-Net in small, for generated pictures and sweeps as those of KITTI.
from mmdeploy_ext.base.config import mmdet3d_config
from projects.configs import monocular

_base_ = [mmdet3d_config('mvxnet/dv_mvx-fpn_second_secfpn_adamw_2x8_80e_kitti-3d-3class.py')]
voxel_size = [0.4, 0.4, 0.2]
point_cloud_range = [0, -25.6, -3, 51.2, 25.6, 1]
model = dict(
    img_backbone=dict(depth=18, base_channels=8, stem_channels=8),
    img_neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    pts_voxel_layer=dict(voxel_size=voxel_size, point_cloud_range=point_cloud_range),
    pts_voxel_encoder=dict(
        feat_channels=[16, 16],
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        fusion_layer=dict(img_channels=16, pts_channels=16, mid_channels=16, out_channels=16),
    ),
    pts_middle_encoder=dict(
        in_channels=16,
        sparse_shape=[21, 128, 128],
        base_channels=8,
        output_channels=16,
        encoder_channels=((8,), (16, 16), (16, 16)),
        encoder_paddings=((1,), (1, 1), ((0, 1, 1), 1)),
    ),
    pts_backbone=dict(in_channels=32, layer_nums=[1, 1], out_channels=[16, 32]),
    pts_neck=dict(in_channels=[16, 32], out_channels=[16, 16]),
    pts_bbox_head=dict(
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(
            ranges=[[0, -25.6, height, 51.2, 25.6, height] for height in (-1.5, -1.5, -1.7)],
        ),
    ),
)
class_names = ['Pedestrian', 'Cyclist', 'Car']
test_pipeline = [
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug3D',
        img_scale=(352, 192),
        pts_scale_ratio=1,
        flip=False,
        transforms=[
            dict(type='Resize', multiscale_mode='value', keep_ratio=True),
            dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
            dict(type='Pad', size_divisor=32),
            dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
            dict(type='DefaultFormatBundle3D', class_names=class_names, with_label=False),
            dict(type='Collect3D', keys=['points', 'img']),
        ],
    ),
]
data = monocular.kitti_sweeps()
data['val']['pipeline'] = test_pipeline
data['test']['pipeline'] = test_pipeline
