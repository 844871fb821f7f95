# mmdet3d's SMOKE in small, for generated pictures as those of KITTI.
from mmdeploy_ext.base.config import mmdet3d_config
from projects.configs import monocular

_base_ = [mmdet3d_config('smoke/smoke_dla34_pytorch_dlaneck_gn-all_8x4_6x_kitti-mono3d.py')]
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=34,
        base_channels=8,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(_delete_=True, type='FPN', in_channels=[8], out_channels=16, num_outs=1),
    bbox_head=dict(
        in_channels=16,
        feat_channels=16,
        cls_branch=(16,),
        reg_branch=((16,),),
        norm_cfg=dict(type='GN', num_groups=4),
    ),
)
size = (320, 96)
test_pipeline = [
    dict(type='LoadImageFromFileMono3D'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=size,
        flip=False,
        transforms=[
            dict(type='AffineResize', img_scale=size, down_ratio=4),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='Pad', size_divisor=32),
            dict(
                type='DefaultFormatBundle3D', class_names=['Pedestrian', 'Cyclist', 'Car'], with_label=False
            ),
            dict(type='Collect3D', keys=['img']),
        ],
    ),
]
data = monocular.kitti()
data['val']['pipeline'] = test_pipeline
data['test']['pipeline'] = test_pipeline
