from mmdeploy_ext.base.config import mmdet_config

_base_ = [
    '../_base_/models/mask_rcnn_toy.py',
    '../_base_/datasets/toy_coco_masks.py',
    mmdet_config('_base_/default_runtime.py'),
]
# the backbone begins as the toy ATSS's, as Mask R-CNN's own configs begin with one trained on ImageNet
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='demo/checkpoints/atss_toy.pth', prefix='backbone.')
    )
)
optimizer = dict(
    type='AdamW', lr=1.5e-3, weight_decay=0.05, paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
)
optimizer_config = dict(grad_clip=dict(max_norm=10, norm_type=2))
lr_config = dict(
    policy='CosineAnnealing', min_lr_ratio=0.01, warmup='linear', warmup_iters=100, warmup_ratio=0.01
)
runner = dict(type='EpochBasedRunner', max_epochs=8)
checkpoint_config = dict(interval=2, max_keep_ckpts=2)
log_config = dict(interval=32)
evaluation = dict(interval=4, metric=['bbox', 'segm'])
