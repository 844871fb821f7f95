from projects.configs.nuscenes_lidar import lidar_data

_base_ = ['../_base_/models/pointpillars_toy.py', '../_base_/stream_runtime.py']
data = lidar_data(
    [-22.4, -22.4, -5.0, 22.4, 22.4, 3.0],
    root='data/toy_nuscenes/',
    infos='toy_nuscenes_infos',
    fold_heading=True,
    samples_per_gpu=4,
    workers_per_gpu=1,
)
optimizer = dict(lr=2e-3)
lr_config = dict(warmup_iters=200)
runner = dict(type='EpochBasedRunner', max_epochs=4)
checkpoint_config = dict(interval=1, max_keep_ckpts=3)
evaluation = dict(interval=4, metric='bbox')
log_config = dict(interval=24)
