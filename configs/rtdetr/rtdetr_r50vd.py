# RT-DETR R50vd on COCO; schedule of the original: 72 epochs at batch 16, AdamW, no decay of the rate.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [
    '../_base_/models/rtdetr_r50vd.py',
    '../_base_/datasets/coco_rtdetr.py',
    mmdet_config('_base_/default_runtime.py'),
]
optimizer = dict(
    type='AdamW',
    lr=1e-4,
    weight_decay=1e-4,
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.1))
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=0.1, norm_type=2))
lr_config = dict(policy='step', step=[1000])
runner = dict(type='EpochBasedRunner', max_epochs=72)
