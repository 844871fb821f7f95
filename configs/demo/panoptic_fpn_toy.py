from mmdeploy_ext.base.config import mmdet_config

_base_ = [
    '../_base_/models/panoptic_fpn_toy.py',
    '../_base_/datasets/toy_coco_panoptic.py',
    mmdet_config('_base_/default_runtime.py'),
]
# all but the head of stuff is the toy Mask R-CNN's, and stays as it is
load_from = 'demo/checkpoints/mask_rcnn_toy.pth'
few = dict(nms_pre=50, max_per_img=20)  # regions, whose losses teach nothing here
model = dict(backbone=dict(frozen_stages=4), train_cfg=dict(rpn_proposal=few, rcnn=dict(sampler=dict(num=8))))
frozen = dict(lr_mult=0.0, decay_mult=0.0)
optimizer = dict(
    type='AdamW',
    lr=3e-3,
    weight_decay=0.01,
    paramwise_cfg=dict(custom_keys=dict(backbone=frozen, neck=frozen, rpn_head=frozen, roi_head=frozen)),
)
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='CosineAnnealing', min_lr_ratio=0.01, warmup='linear', warmup_iters=30, warmup_ratio=0.01
)
runner = dict(type='EpochBasedRunner', max_epochs=3)
checkpoint_config = dict(interval=1, max_keep_ckpts=2)
log_config = dict(interval=20)
custom_hooks = []  # one of them wants heads of all classes of the data set; here they share them
