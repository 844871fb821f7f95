# First half of the toy RT-DETR's training: its backbone and encoder under ATSS's head, which learns from
# every cell. A set loss alone teaches a small backbone too slowly for a CPU; others begin with ImageNet.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [
    '../_base_/models/atss_toy.py',
    '../_base_/datasets/toy_coco_rtdetr.py',
    mmdet_config('_base_/default_runtime.py'),
]
custom_imports = dict(imports=['mmdeploy_ext.upstream.models.mmdet'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='PResNet', depth=18, base_channels=16, freeze_norm=False, freeze_stem=False
    ),
    neck=dict(
        _delete_=True,
        type='RTDETRHybridEncoder',
        in_channels=[32, 64, 128],
        hidden_dim=96,
        num_heads=4,
        feedforward=192,
        expansion=0.5,
    ),
    bbox_head=dict(in_channels=96, anchor_generator=dict(strides=[8, 16, 32])),
)
optimizer = dict(
    type='AdamW', lr=1.5e-3, weight_decay=0.05, paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr_ratio=0.01, warmup='linear', warmup_iters=100, warmup_ratio=0.01
)
runner = dict(type='EpochBasedRunner', max_epochs=16)
checkpoint_config = dict(interval=2, max_keep_ckpts=1)
log_config = dict(interval=20)
