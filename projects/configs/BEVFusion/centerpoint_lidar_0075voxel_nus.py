# The encoder of the published CenterPoint, det3d's names. Source: tianweiy/CenterPoint 3cf7d87,
# configs/nusc/voxelnet/nusc_centerpoint_voxelnet_0075voxel_fix_bn_z.py.
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
model = dict(
    type='LidarBackbone',
    encoder_path='backbone',
    output_shape=(1, 256, 180, 180),
    voxel_layer=dict(
        max_num_points=10,
        voxel_size=[0.075, 0.075, 0.2],
        max_voxels=(120000, 160000),
        point_cloud_range=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
    ),
    encoder=dict(type='CenterPointSparseEncoder', in_channels=5, sparse_shape=[41, 1440, 1440]),
)
