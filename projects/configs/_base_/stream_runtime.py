# How a stream is trained: by iterations, with a cosine; mmdet3d's runtime without the TensorBoard hook.
from mmdeploy_ext.core.config import mmdet3d_config

_base_ = [mmdet3d_config('_base_/default_runtime.py')]
custom_imports = dict(imports=['projects.mmdet3d_plugin'], allow_failed_imports=False)
optimizer = dict(type='AdamW', lr=4e-4, weight_decay=0.01)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', warmup='linear', warmup_iters=500, warmup_ratio=1.0 / 3, min_lr_ratio=1e-3
)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
find_unused_parameters = False
