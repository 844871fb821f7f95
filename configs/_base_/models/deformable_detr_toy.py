# Two-stage Deformable DETR on a quarter-width ResNet-18: one layer of the encoder, two of the decoder.
_base_ = './resnet18_toy.py'
points = dict(type='MultiScaleDeformableAttention', embed_dims=256, num_levels=3, dropout=0.0)
model = dict(
    type='DeformableDETR',
    backbone=dict(out_indices=(2, 3), frozen_stages=2, norm_eval=True),
    neck=dict(
        type='ChannelMapper',
        in_channels=[64, 128],
        kernel_size=1,
        out_channels=256,  # the encoding of proposals has as many
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=3,
    ),
    bbox_head=dict(
        type='DeformableDETRHead',
        num_query=40,
        num_classes=6,
        in_channels=128,
        sync_cls_avg_factor=True,
        with_box_refine=True,
        as_two_stage=True,
        transformer=dict(
            type='DeformableDetrTransformer',
            num_feature_levels=3,
            two_stage_num_proposals=40,
            encoder=dict(
                type='DetrTransformerEncoder',
                num_layers=1,
                transformerlayers=dict(
                    type='BaseTransformerLayer',
                    attn_cfgs=points,
                    operation_order=('self_attn', 'norm', 'ffn', 'norm'),
                    feedforward_channels=256,
                    ffn_dropout=0.0,
                ),
            ),
            decoder=dict(
                type='DeformableDetrTransformerDecoder',
                num_layers=2,
                return_intermediate=True,
                transformerlayers=dict(
                    type='DetrTransformerDecoderLayer',
                    attn_cfgs=[
                        dict(type='MultiheadAttention', embed_dims=256, num_heads=8, dropout=0.0),
                        points,
                    ],
                    operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
                    feedforward_channels=256,
                    ffn_dropout=0.0,
                ),
            ),
        ),
        positional_encoding=dict(type='SinePositionalEncoding', num_feats=128, normalize=True, offset=-0.5),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            cls_cost=dict(type='FocalLossCost', weight=2.0),
            reg_cost=dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
            iou_cost=dict(type='IoUCost', iou_mode='giou', weight=2.0),
        )
    ),
    test_cfg=dict(max_per_img=40),
)
