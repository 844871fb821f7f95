# For `--contract autoware`: a CenterPoint that lidar_centerpoint can load, on nuScenes; docs/autoware.md.
from projects.configs.nuscenes_lidar import LOAD_POINTS, lidar_data

_base_ = ['../_base_/models/centerpoint_pillar_node.py', '../_base_/plugin_runtime.py']
data = lidar_data(
    classes=['car', 'truck', 'bus', 'bicycle', 'pedestrian'],
    loads=[LOAD_POINTS, dict(type='LoadPointsFromMultiSweeps', sweeps_num=1, use_dim=[0, 1, 2, 4])],
)
