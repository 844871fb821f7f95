# CenterPoint with pillars in the sizes that Autoware's lidar_centerpoint has as constants: 32 points of a
# pillar, 32 channels, one task; range, pillars and classes are those of the files that Autoware ships, the
# points x, y, z and the time lag.
voxel_size = [0.32, 0.32, 10.0]
point_cloud_range = [-76.8, -76.8, -4.0, 76.8, 76.8, 6.0]
class_names = ['car', 'truck', 'bus', 'bicycle', 'pedestrian']
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    type='CenterPoint',
    pts_voxel_layer=dict(
        max_num_points=32,
        voxel_size=voxel_size,
        max_voxels=(32000, 40000),
        point_cloud_range=point_cloud_range,
    ),
    pts_voxel_encoder=dict(
        type='PillarFeatureNet',
        in_channels=4,
        feat_channels=[32],
        with_distance=False,
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
        legacy=False,
    ),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=32, output_shape=(480, 480)),
    pts_backbone=dict(
        type='SECOND',
        in_channels=32,
        out_channels=[64, 128, 256],
        layer_nums=[3, 5, 5],
        layer_strides=[1, 2, 2],
        norm_cfg=norm_cfg,
        conv_cfg=dict(type='Conv2d', bias=False),
    ),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[64, 128, 256],
        out_channels=[128, 128, 128],
        upsample_strides=[1, 2, 4],
        norm_cfg=norm_cfg,
        upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True,
    ),
    pts_bbox_head=dict(
        type='CenterHead',
        in_channels=384,
        share_conv_channel=64,
        tasks=[dict(num_class=5, class_names=class_names)],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=point_cloud_range[:2],
            post_center_range=[-90.0, -90.0, -10.0, 90.0, 90.0, 10.0],
            max_num=500,
            score_threshold=0.1,
            out_size_factor=1,
            voxel_size=voxel_size[:2],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        loss_cls=dict(type='GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='L1Loss', reduction='mean', loss_weight=0.25),
    ),
    train_cfg=dict(
        pts=dict(
            point_cloud_range=point_cloud_range,
            grid_size=[480, 480, 1],
            voxel_size=voxel_size,
            out_size_factor=1,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=500,
            min_radius=2,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        )
    ),
    # the suppression that the node has: other boxes within 0.5 m go, whatever their class
    test_cfg=dict(
        pts=dict(
            post_center_limit_range=[-90.0, -90.0, -10.0, 90.0, 90.0, 10.0],
            max_per_img=500,
            max_pool_nms=False,
            min_radius=[0.25],
            score_threshold=0.1,
            out_size_factor=1,
            voxel_size=voxel_size[:2],
            pc_range=point_cloud_range[:2],
            nms_type='circle',
            pre_max_size=1000,
            post_max_size=500,
            nms_thr=0.2,
        )
    ),
)
