# BEVFusion of six cameras alone with Swin-T and CenterPoint's head. Source: mit-han-lab/bevfusion db75150,
# configs/nuscenes/det/centerhead/lssfpn/camera/256x704/swint/default.yaml and what it inherits.
from projects.configs.nuscenes_fusion import fusion_data

_base_ = ['./bevfusion_camera_lidar_swint_nus.py']
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
post_center_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
voxel_size = [0.1, 0.1, 0.2]
model = dict(
    encoders=dict(
        camera=dict(
            vtransform=dict(type='LSSTransform', xbound=(-51.2, 51.2, 0.4), ybound=(-51.2, 51.2, 0.4))
        ),
        lidar=None,
    ),
    fuser=None,
    decoder=dict(
        backbone=dict(
            _delete_=True,
            type='GeneralizedResNet',
            in_channels=80,
            blocks=[[2, 128, 2], [2, 256, 2], [2, 512, 1]],
        ),
        neck=dict(
            _delete_=True,
            type='LSSFPN',
            in_indices=[-1, 0],
            in_channels=[512, 128],
            out_channels=256,
            scale_factor=2,
        ),
    ),
    heads=dict(
        object=dict(
            _delete_=True,
            type='CenterHead',
            in_channels=256,
            tasks=[
                ['car'],
                ['truck', 'construction_vehicle'],
                ['bus', 'trailer'],
                ['barrier'],
                ['motorcycle', 'bicycle'],
                ['pedestrian', 'traffic_cone'],
            ],
            common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
            share_conv_channel=64,
            bbox_coder=dict(
                type='CenterPointBBoxCoder',
                pc_range=point_cloud_range,
                post_center_range=post_center_range,
                max_num=500,
                score_threshold=0.1,
                out_size_factor=8,
                voxel_size=voxel_size[:2],
                code_size=9,
            ),
            separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
            loss_cls=dict(type='GaussianFocalLoss', reduction='mean'),
            loss_bbox=dict(type='L1Loss', reduction='mean', loss_weight=0.25),
            norm_bbox=True,
            train_cfg=dict(
                point_cloud_range=point_cloud_range,
                grid_size=[1024, 1024, 1],
                voxel_size=voxel_size,
                out_size_factor=8,
                dense_reg=1,
                gaussian_overlap=0.1,
                max_objs=500,
                min_radius=2,
                code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
            ),
            test_cfg=dict(
                post_center_limit_range=post_center_range,
                max_per_img=500,
                max_pool_nms=False,
                min_radius=[4, 12, 10, 1, 0.85, 0.175],
                score_threshold=0.1,
                out_size_factor=8,
                voxel_size=voxel_size[:2],
                nms_type=['circle', 'rotate', 'rotate', 'circle', 'rotate', 'rotate'],
                nms_scale=[[1.0], [1.0, 1.0], [1.0, 1.0], [1.0], [1.0, 1.0], [2.5, 4.0]],
                pre_max_size=1000,
                post_max_size=83,
                nms_thr=0.2,
            ),
        )
    ),
)
data = dict(_delete_=True, **fusion_data(dict(final_dim=[256, 704], resize_lim=[0.48, 0.48])))
