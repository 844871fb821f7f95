# BEVFusion of six cameras alone with ResNet-50 and CenterPoint's head. Source: mit-han-lab/bevfusion,
# configs/nuscenes/det/centerhead/lssfpn/camera/256x704/resnet/default.yaml and what it inherits.
_base_ = ['./bevfusion_camera_swint_nus.py']
model = dict(
    encoders=dict(
        camera=dict(
            backbone=dict(
                _delete_=True,
                type='ResNet',
                depth=50,
                num_stages=4,
                out_indices=(0, 1, 2, 3),
                norm_cfg=dict(type='BN', requires_grad=True),
                norm_eval=False,
            ),
            neck=dict(
                _delete_=True,
                type='SECONDFPN',
                in_channels=[256, 512, 1024, 2048],
                out_channels=[128, 128, 128, 128],
                upsample_strides=[0.25, 0.5, 1, 2],
            ),
            vtransform=dict(
                in_channels=512,
                out_channels=64,
                feature_size=(16, 44),
                xbound=(-51.2, 51.2, 0.8),
                ybound=(-51.2, 51.2, 0.8),
                dbound=(1.0, 60.0, 1.0),
                downsample=1,
            ),
        )
    ),
    decoder=dict(backbone=dict(in_channels=64)),
)
data = dict(samples_per_gpu=4)
