# lidar_centerpoint's CenterPoint in small: its constants (see centerpoint_pillar_node.py), 44.8 m x 44.8 m.
_base_ = ['./centerpoint_pillar_node.py']
point_cloud_range = [-22.4, -22.4, -4.0, 22.4, 22.4, 6.0]
post_center_range = [-30.0, -30.0, -10.0, 30.0, 30.0, 10.0]
model = dict(
    pts_voxel_layer=dict(max_voxels=(6000, 6000), point_cloud_range=point_cloud_range),
    pts_voxel_encoder=dict(point_cloud_range=point_cloud_range),
    pts_middle_encoder=dict(output_shape=(140, 140)),
    pts_backbone=dict(out_channels=[48, 80], layer_nums=[2, 2], layer_strides=[1, 2]),
    pts_neck=dict(in_channels=[48, 80], out_channels=[32, 32], upsample_strides=[1, 2]),
    pts_bbox_head=dict(
        in_channels=64,
        share_conv_channel=32,
        bbox_coder=dict(pc_range=point_cloud_range[:2], post_center_range=post_center_range, max_num=100),
        separate_head=dict(head_conv=16),
    ),
    train_cfg=dict(pts=dict(point_cloud_range=point_cloud_range, grid_size=[140, 140, 1], max_objs=50)),
    test_cfg=dict(
        pts=dict(
            post_center_limit_range=post_center_range,
            max_per_img=100,
            pc_range=point_cloud_range[:2],
            pre_max_size=100,
            post_max_size=50,
        )
    ),
)
