# BEVFusion of LiDAR alone. Source: mit-han-lab/bevfusion db75150,
# configs/nuscenes/det/transfusion/secfpn/lidar/voxelnet_0p075.yaml.
from projects.configs.nuscenes_fusion import fusion_data

_base_ = ['./bevfusion_camera_lidar_r50_nus.py']
model = dict(encoders=dict(camera=None), fuser=None)
data = dict(_delete_=True, **fusion_data(None))
