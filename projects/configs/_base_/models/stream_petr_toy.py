# The same model in small: ResNet-18 of 16 base channels, 96 channels, 3 decoder layers, 40 + 8 queries.
_base_ = ['./stream_petr_r50.py']
point_cloud_range = [-32.0, -32.0, -5.0, 32.0, 32.0, 3.0]
position_range = [-38.4, -38.4, -10.0, 38.4, 38.4, 10.0]
model = dict(
    use_grid_mask=False,
    img_backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=4,
        out_indices=(2, 3),
        # consecutive batches are neighbouring frames of the same four scenes: a long average
        norm_cfg=dict(type='BN', momentum=0.01, requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    img_neck=dict(in_channels=[64, 128], out_channels=96),
    img_roi_head=dict(in_channels=96),
    pts_bbox_head=dict(
        in_channels=96,
        embed_dims=96,
        num_query=40,
        memory_len=40,
        # eight objects to a frame: more propagated queries are copies of each other
        topk_proposals=8,
        num_propagated=8,
        scalar=8,
        position_range=position_range,
        transformer=dict(
            decoder=dict(
                num_layers=3,
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(type='MultiheadAttention', embed_dims=96, num_heads=4, dropout=0.0),
                        dict(type='PETRMultiheadAttention', embed_dims=96, num_heads=4, dropout=0.0),
                    ],
                    feedforward_channels=384,
                    ffn_dropout=0.0,
                    with_cp=False,
                ),
            )
        ),
        bbox_coder=dict(post_center_range=position_range, pc_range=point_cloud_range, max_num=100),
    ),
    train_cfg=dict(pts=dict(point_cloud_range=point_cloud_range, assigner=dict(pc_range=point_cloud_range))),
)
