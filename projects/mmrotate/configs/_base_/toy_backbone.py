# The backbone of configs/demo/atss_toy.py, whose weights it begins with.
_base_ = '../../../../configs/_base_/models/resnet18_toy.py'
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='demo/checkpoints/atss_toy.pth', prefix='backbone.')
    )
)
