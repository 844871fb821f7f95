# Decoupled SOLO with the backbone and grids of solov2_toy.py.
_base_ = './solov2_toy.py'
model = dict(
    type='SOLO',
    mask_head=dict(
        _delete_=True,
        type='DecoupledSOLOHead',
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 8, 16, 32, 32],
        # a level finer than SOLOv2's: these masks have their level's resolution
        scale_ranges=((1, 48), (24, 100), (72, 220), (180, 1024), (400, 1024)),
        pos_scale=0.2,
        num_grids=[24, 20, 14, 10, 8],
        cls_down_index=0,
        norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
        loss_mask=dict(type='DiceLoss', use_sigmoid=True, activate=False, loss_weight=3.0),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    ),
)
