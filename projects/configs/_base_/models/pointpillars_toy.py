# PointPillars in small: mmdet3d's nuScenes configs with anchors of seven sizes, narrower, 44.8 m x 44.8 m.
voxel_size = [0.2, 0.2, 8.0]
point_cloud_range = [-22.4, -22.4, -5.0, 22.4, 22.4, 3.0]
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    type='MVXFasterRCNN',
    pts_voxel_layer=dict(
        max_num_points=20, voxel_size=voxel_size, max_voxels=(8000, 8000), point_cloud_range=point_cloud_range
    ),
    pts_voxel_encoder=dict(
        type='HardVFE',
        in_channels=5,
        feat_channels=[32, 32],
        with_distance=False,
        voxel_size=voxel_size,
        with_cluster_center=True,
        with_voxel_center=True,
        point_cloud_range=point_cloud_range,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),
    ),
    pts_middle_encoder=dict(type='PointPillarsScatter', in_channels=32, output_shape=[224, 224]),
    pts_backbone=dict(
        type='SECOND',
        in_channels=32,
        out_channels=[48, 80],
        layer_nums=[2, 2],
        layer_strides=[2, 2],
        norm_cfg=norm_cfg,
    ),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[48, 80],
        out_channels=[32, 32],
        upsample_strides=[1, 2],
        norm_cfg=norm_cfg,
    ),
    pts_bbox_head=dict(
        type='Anchor3DHead',
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        use_direction_classifier=True,
        anchor_generator=dict(
            type='AlignedAnchor3DRangeGenerator',
            ranges=[[-22.4, -22.4, -1.84, 22.4, 22.4, -1.84]] * 7,
            sizes=[
                [4.62, 1.95, 1.73],
                [6.7, 2.6, 3.0],
                [11.7, 2.92, 3.67],
                [1.9, 0.68, 1.37],
                [0.73, 0.67, 1.77],
                [0.41, 0.41, 1.07],
                [0.5, 2.53, 0.98],
            ],
            custom_values=[0, 0],
            rotations=[0, 1.57],
            reshape_out=True,
        ),
        assigner_per_size=False,
        diff_rad_by_sin=True,
        dir_offset=-0.7854,
        bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder', code_size=9),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0),
        loss_dir=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.2),
    ),
    train_cfg=dict(
        pts=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                iou_calculator=dict(type='BboxOverlapsNearest3D'),
                pos_iou_thr=0.5,
                neg_iou_thr=0.3,
                min_pos_iou=0.2,
                ignore_iof_thr=-1,
            ),
            allowed_border=0,
            code_weight=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
            pos_weight=-1,
            debug=False,
        )
    ),
    test_cfg=dict(
        pts=dict(
            use_rotate_nms=True,
            nms_across_levels=False,
            nms_pre=1000,
            nms_thr=0.2,
            score_thr=0.05,
            min_bbox_size=0,
            max_num=100,
        )
    ),
)
