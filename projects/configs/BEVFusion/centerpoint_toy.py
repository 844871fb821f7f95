from projects.configs.nuscenes_lidar import lidar_data

_base_ = ['../_base_/models/centerpoint_toy.py', '../_base_/schedules/lidar_toy.py']
data = lidar_data(
    [-22.4, -22.4, -2.4, 22.4, 22.4, 2.4],
    root='data/toy_nuscenes/',
    infos='toy_nuscenes_infos',
    fold_heading=True,
    samples_per_gpu=4,
    workers_per_gpu=1,
)
