# SOLOv2 with a quarter-width ResNet-18 whose BN learns.
_base_ = './resnet18_toy.py'
model = dict(
    type='SOLOv2',
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=64, start_level=0, num_outs=5),
    mask_head=dict(
        type='SOLOV2Head',
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 8, 16, 32, 32],
        # shapes are 12 to 210 pixels wide in pictures of about 256
        scale_ranges=((1, 40), (24, 72), (48, 120), (80, 180), (140, 1024)),
        pos_scale=0.2,
        num_grids=[24, 20, 14, 10, 8],
        cls_down_index=0,
        norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
        mask_feature_head=dict(
            feat_channels=32,
            start_level=0,
            end_level=3,
            out_channels=32,
            mask_stride=4,
            norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        ),
        loss_mask=dict(type='DiceLoss', use_sigmoid=True, loss_weight=3.0),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=500,
        score_thr=0.1,
        mask_thr=0.5,
        filter_thr=0.05,
        kernel='gaussian',
        sigma=2.0,
        max_per_img=100,
    ),
)
