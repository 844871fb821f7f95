from projects.configs.nuscenes_stream import image_augmentation, stream_data

_base_ = ['../_base_/models/stream_petr_toy.py', '../_base_/stream_runtime.py']
# No augmentation: the drives are as many as a small model can learn in an hour on two cores.
data = stream_data(
    image_augmentation((96, 256), (256 / 352, 256 / 352), source=(198, 352), rand_flip=False),
    [-32.0, -32.0, -5.0, 32.0, 32.0, 3.0],
    rotation=0.0,
    scale=(1.0, 1.0),
    root='data/toy_nuscenes/',
    infos='toy_nuscenes2d_temporal_infos',
    samples_per_gpu=4,
    workers_per_gpu=1,
    filter_empty_gt=False,
)
optimizer = dict(lr=4e-4)
lr_config = dict(warmup_iters=100)
runner = dict(type='IterBasedRunner', max_iters=8000)
checkpoint_config = dict(interval=250, max_keep_ckpts=3)
evaluation = dict(interval=8000)
# otherwise the cross attention is blind for thousands of iterations
custom_hooks = [dict(type='GeometryWarmupHook', iters=800)]
log_config = dict(interval=25)
