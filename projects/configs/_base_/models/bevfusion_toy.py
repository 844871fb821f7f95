# BEVFusion in small: pictures of 96 x 256, points of 44.8 m x 44.8 m, one map of 56 x 56.
_base_ = ['./bevfusion_r50.py']
voxel_size = [0.2, 0.2, 0.2]
point_cloud_range = [-22.4, -22.4, -2.4, 22.4, 22.4, 2.4]
model = dict(
    encoders=dict(
        camera=dict(
            backbone=dict(
                _delete_=True,
                type='ResNet',
                depth=18,
                base_channels=24,
                stem_channels=24,
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(1, 2),
                norm_eval=False,
                style='pytorch',
            ),
            neck=dict(in_channels=[48, 96], out_channels=32, num_outs=2),
            vtransform=dict(
                in_channels=32,
                out_channels=24,
                image_size=(96, 256),
                feature_size=(12, 32),
                xbound=(-22.4, 22.4, 0.4),
                ybound=(-22.4, 22.4, 0.4),
                dbound=(1.0, 25.0, 1.0),
            ),
        ),
        lidar=dict(
            voxelize=dict(
                point_cloud_range=point_cloud_range, voxel_size=voxel_size, max_voxels=(12000, 12000)
            ),
            backbone=dict(
                sparse_shape=[224, 224, 25],
                base_channels=8,
                output_channels=32,
                encoder_channels=((8, 8, 16), (16, 16, 32), (32, 32)),
                encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0)),
            ),
        ),
    ),
    fuser=dict(in_channels=[24, 96], out_channels=48),
    decoder=dict(
        backbone=dict(in_channels=48, out_channels=[32, 64], layer_nums=[2, 2]),
        neck=dict(in_channels=[32, 64], out_channels=[32, 32]),
    ),
    heads=dict(
        object=dict(
            num_proposals=60,
            in_channels=64,
            hidden_channel=48,
            num_heads=4,
            ffn_channel=96,
            dropout=0.0,
            train_cfg=dict(
                point_cloud_range=point_cloud_range,
                grid_size=[224, 224, 25],
                voxel_size=voxel_size,
                out_size_factor=4,
                min_radius=1,
            ),
            test_cfg=dict(
                grid_size=[224, 224, 25],
                out_size_factor=4,
                voxel_size=voxel_size[:2],
                pc_range=point_cloud_range[:2],
            ),
            bbox_coder=dict(
                pc_range=point_cloud_range[:2],
                post_center_range=[-30.0, -30.0, -10.0, 30.0, 30.0, 10.0],
                out_size_factor=4,
                voxel_size=voxel_size[:2],
            ),
        )
    ),
)
