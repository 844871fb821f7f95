# Second half of the toy RT-DETR's training; the first is configs/demo/rtdetr_toy_dense.py.
from mmdeploy_ext.base.config import mmdet_config

_base_ = [
    '../_base_/models/rtdetr_toy.py',
    '../_base_/datasets/toy_coco_rtdetr.py',
    mmdet_config('_base_/default_runtime.py'),
]
dense = 'work_dirs/rtdetr_toy_dense/latest.pth'  # read by training alone
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=dense, prefix='backbone.')),
    encoder=dict(init_cfg=dict(type='Pretrained', checkpoint=dense, prefix='neck.')),
)
optimizer = dict(
    type='AdamW',
    lr=8e-4,
    weight_decay=1e-4,
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'backbone': dict(lr_mult=0.3), 'encoder': dict(lr_mult=0.5)}
    ),
)
optimizer_config = dict(grad_clip=dict(max_norm=1.0, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr_ratio=0.01, warmup='linear', warmup_iters=100, warmup_ratio=0.01
)
runner = dict(type='EpochBasedRunner', max_epochs=14)
checkpoint_config = dict(interval=2, max_keep_ckpts=1)
log_config = dict(interval=49)
