# The encoder of the published CenterPoint, det3d's names. Source: tianweiy/CenterPoint 3cf7d87,
# configs/nusc/voxelnet/nusc_centerpoint_voxelnet_0075voxel_fix_bn_z.py.
_base_ = ['./bevfusion_lidar_0075voxel_nus.py']
model = dict(
    encoder_path='backbone',
    encoder=dict(
        _delete_=True, type='CenterPointSparseEncoder', in_channels=5, sparse_shape=[41, 1440, 1440]
    ),
)
