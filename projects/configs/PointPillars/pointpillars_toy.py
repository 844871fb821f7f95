from projects.configs.nuscenes_lidar import lidar_data, toy

_base_ = ['../_base_/models/pointpillars_toy.py', '../_base_/schedules/lidar_toy.py']
data = lidar_data([-22.4, -22.4, -5.0, 22.4, 22.4, 3.0], **toy())
