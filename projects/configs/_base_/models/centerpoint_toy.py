# CenterPoint in small: the published 0.1 m architecture, narrower and with less depth, 44.8 m x 44.8 m.
voxel_size = [0.2, 0.2, 0.2]
point_cloud_range = [-22.4, -22.4, -2.4, 22.4, 22.4, 2.4]
post_center_range = [-30.0, -30.0, -10.0, 30.0, 30.0, 10.0]
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    type='CenterPoint',
    pts_voxel_layer=dict(
        max_num_points=10,
        voxel_size=voxel_size,
        max_voxels=(12000, 12000),
        point_cloud_range=point_cloud_range,
    ),
    pts_voxel_encoder=dict(type='HardSimpleVFE', num_features=5),
    pts_middle_encoder=dict(
        type='SparseEncoder',
        in_channels=5,
        sparse_shape=[25, 224, 224],
        base_channels=8,
        output_channels=32,
        encoder_channels=((8, 8, 16), (16, 16, 32), (32, 32)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0)),
        block_type='basicblock',
    ),
    pts_backbone=dict(
        type='SECOND',
        in_channels=96,
        out_channels=[48, 80],
        layer_nums=[2, 2],
        layer_strides=[1, 2],
        norm_cfg=norm_cfg,
        conv_cfg=dict(type='Conv2d', bias=False),
    ),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[48, 80],
        out_channels=[32, 32],
        upsample_strides=[1, 2],
        norm_cfg=norm_cfg,
        upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True,
    ),
    pts_bbox_head=dict(
        type='CenterHead',
        in_channels=64,
        share_conv_channel=32,
        tasks=[
            dict(num_class=1, class_names=['car']),
            dict(num_class=2, class_names=['truck', 'construction_vehicle']),
            dict(num_class=2, class_names=['bus', 'trailer']),
            dict(num_class=1, class_names=['barrier']),
            dict(num_class=2, class_names=['motorcycle', 'bicycle']),
            dict(num_class=2, class_names=['pedestrian', 'traffic_cone']),
        ],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=point_cloud_range[:2],
            post_center_range=post_center_range,
            max_num=100,
            score_threshold=0.05,
            out_size_factor=4,
            voxel_size=voxel_size[:2],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3, head_conv=16),
        loss_cls=dict(type='GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='L1Loss', reduction='mean', loss_weight=0.25),
    ),
    train_cfg=dict(
        pts=dict(
            point_cloud_range=point_cloud_range,
            grid_size=[224, 224, 24],
            voxel_size=voxel_size,
            out_size_factor=4,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=50,
            min_radius=1,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        )
    ),
    test_cfg=dict(
        pts=dict(
            post_center_limit_range=post_center_range,
            max_per_img=100,
            max_pool_nms=False,
            min_radius=[4, 12, 10, 1, 0.85, 0.175],
            score_threshold=0.05,
            out_size_factor=4,
            voxel_size=voxel_size[:2],
            pc_range=point_cloud_range[:2],
            nms_type='rotate',
            pre_max_size=100,
            post_max_size=50,
            nms_thr=0.2,
        )
    ),
)
