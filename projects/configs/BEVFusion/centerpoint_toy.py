from projects.configs.nuscenes_lidar import lidar_data, toy

_base_ = ['../_base_/models/centerpoint_toy.py', '../_base_/schedules/lidar_toy.py']
data = lidar_data([-22.4, -22.4, -2.4, 22.4, 22.4, 2.4], **toy())
