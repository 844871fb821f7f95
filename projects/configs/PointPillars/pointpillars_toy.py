from projects.configs.nuscenes_lidar import lidar_data

_base_ = ['../_base_/models/pointpillars_toy.py', '../_base_/schedules/lidar_toy.py']
data = lidar_data(
    [-22.4, -22.4, -5.0, 22.4, 22.4, 3.0],
    root='data/toy_nuscenes/',
    infos='toy_nuscenes_infos',
    fold_heading=True,
    samples_per_gpu=4,
    workers_per_gpu=1,
)
