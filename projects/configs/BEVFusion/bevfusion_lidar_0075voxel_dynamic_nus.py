# BEVFusion's backbone on dynamic voxels: no limit of points per voxel nor of voxels.
_base_ = ['./bevfusion_lidar_0075voxel_nus.py']
model = dict(voxel_layer=dict(max_num_points=-1, max_voxels=(-1, -1)))
