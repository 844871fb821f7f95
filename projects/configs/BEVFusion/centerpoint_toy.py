from projects.configs.nuscenes_lidar import lidar_data, toy

_base_ = ['../_base_/models/centerpoint_toy.py', '../_base_/plugin_runtime.py']
data = lidar_data(**toy())
