# How the small LiDAR detectors are trained: four passes over the generated sweeps.
_base_ = ['../stream_runtime.py']
optimizer = dict(lr=2e-3)
lr_config = dict(warmup_iters=200)
runner = dict(type='EpochBasedRunner', max_epochs=4)
checkpoint_config = dict(interval=1, max_keep_ckpts=3)
evaluation = dict(interval=4, metric='bbox')
log_config = dict(interval=24)
