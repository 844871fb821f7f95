# The LiDAR backbone of BEVFusion. Source: mit-han-lab/bevfusion 326653d,
# configs/nuscenes/det/transfusion/secfpn/lidar/voxelnet_0p075.yaml.
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
model = dict(
    type='LidarBackbone',
    encoder_path='encoders.lidar.backbone',
    output_shape=(1, 256, 180, 180),
    voxel_layer=dict(
        max_num_points=10,
        voxel_size=[0.075, 0.075, 0.2],
        max_voxels=(120000, 160000),
        point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    ),
    encoder=dict(
        type='BEVFusionSparseEncoder',
        in_channels=5,
        sparse_shape=[1440, 1440, 41],
        output_channels=128,
        encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
        block_type='basicblock',
    ),
)
