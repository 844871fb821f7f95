from mmdeploy_ext.config import mmdet_config

_base_ = ['../_base_/models/rtdetr_toy.py', '../_base_/datasets/toy_coco_rtdetr.py',
          mmdet_config('_base_/default_runtime.py')]
optimizer = dict(
    type='AdamW', lr=1e-3, weight_decay=1e-4, paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
optimizer_config = dict(grad_clip=dict(max_norm=1.0, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr_ratio=0.01, warmup='linear', warmup_iters=200, warmup_ratio=0.01)
runner = dict(type='EpochBasedRunner', max_epochs=40)
checkpoint_config = dict(interval=4, max_keep_ckpts=1)
log_config = dict(interval=49)
