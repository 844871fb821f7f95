"""The `model` section of BEVFormer's configs: they differ in the backbone, the levels and the grid."""

from typing import Any

PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
CHANNELS = 256
R50 = dict(
    type='ResNet',
    depth=50,
    num_stages=4,
    out_indices=(3,),
    frozen_stages=1,
    norm_cfg=dict(type='BN', requires_grad=False),
    norm_eval=True,
    style='pytorch',
)
R101_DCN = dict(
    type='ResNet',
    depth=101,
    num_stages=4,
    frozen_stages=1,
    norm_cfg=dict(type='BN2d', requires_grad=False),
    norm_eval=True,
    style='caffe',
    dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, False, True, True),
)
"""Its `out_indices` are those of a config."""
POST_NORM = ('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm')


def encoder(layers: int, levels: int, channels: int, heads: int, pc_range: list[float]) -> dict[str, Any]:
    """Return the encoder of the bird's-eye view, for feature maps of so many levels."""
    cameras = dict(
        type='SpatialCrossAttention',
        pc_range=pc_range,
        deformable_attention=dict(
            type='MSDeformableAttention3D',
            embed_dims=channels,
            num_heads=heads,
            num_points=8,
            num_levels=levels,
        ),
        embed_dims=channels,
    )
    layer = dict(
        type='BEVFormerLayer',
        attn_cfgs=[
            dict(type='TemporalSelfAttention', embed_dims=channels, num_heads=heads, num_levels=1),
            cameras,
        ],
        feedforward_channels=2 * channels,
        ffn_dropout=0.1,
        operation_order=POST_NORM,
    )
    return dict(
        type='BEVFormerEncoder',
        num_layers=layers,
        pc_range=pc_range,
        num_points_in_pillar=4,
        return_intermediate=False,
        transformerlayers=layer,
    )


def decoder(layers: int, channels: int, heads: int) -> dict[str, Any]:
    """Return the decoder of objects."""
    attentions = [
        dict(type='MultiheadAttention', embed_dims=channels, num_heads=heads, dropout=0.1),
        dict(type='CustomMSDeformableAttention', embed_dims=channels, num_heads=heads, num_levels=1),
    ]
    layer = dict(
        type='DetrTransformerDecoderLayer',
        attn_cfgs=attentions,
        feedforward_channels=2 * channels,
        ffn_cfgs=dict(type='FFN', embed_dims=channels, ffn_drop=0.1),
        operation_order=POST_NORM,
    )
    return dict(
        type='DetectionTransformerDecoder',
        num_layers=layers,
        return_intermediate=True,
        transformerlayers=layer,
    )


def bevformer(
    backbone: dict[str, Any],
    in_channels: list[int],
    levels: int,
    side: int,
    layers: int,
    channels: int = CHANNELS,
    heads: int = 8,
    decoder_layers: int = 6,
    queries: int = 900,
    max_num: int = 300,
    pc_range: list[float] = PC_RANGE,
) -> dict[str, Any]:
    """Return the `model` section.

    Args:
        backbone: its config.
        in_channels: channels of the backbone's levels.
        levels: number of levels of the neck.
        side: rows, and columns, of the bird's-eye view.
        layers: number of layers of the encoder.
        channels: of features, cells and queries.
        heads: number of heads of the attentions.
        decoder_layers: number of layers of the decoder.
        queries: number of object queries.
        max_num: most boxes of a frame.
        pc_range: x, y, z low, then high, m.
    """
    neck = dict(
        type='FPN',
        in_channels=in_channels,
        out_channels=channels,
        start_level=0,
        add_extra_convs='on_output',
        num_outs=levels,
        relu_before_extra_convs=True,
    )
    transformer = dict(
        type='PerceptionTransformer',
        rotate_prev_bev=True,
        use_shift=True,
        use_can_bus=True,
        embed_dims=channels,
        encoder=encoder(layers, levels, channels, heads, pc_range),
        decoder=decoder(decoder_layers, channels, heads),
    )
    coder = dict(
        type='NMSFreeCoder',
        post_center_range=[
            *(low - 10.0 if number < 2 else low - 5.0 for number, low in enumerate(pc_range[:3])),
            *(high + 10.0 if number < 2 else high + 7.0 for number, high in enumerate(pc_range[3:])),
        ],
        pc_range=pc_range,
        max_num=max_num,
        voxel_size=[0.2, 0.2, 8],
        num_classes=10,
    )
    head = dict(
        type='BEVFormerHead',
        bev_h=side,
        bev_w=side,
        num_query=queries,
        num_classes=10,
        in_channels=channels,
        with_box_refine=True,
        as_two_stage=False,
        transformer=transformer,
        bbox_coder=coder,
        positional_encoding=dict(
            type='LearnedPositionalEncoding', num_feats=channels // 2, row_num_embed=side, col_num_embed=side
        ),
    )
    return dict(
        type='BEVFormer', video_test_mode=True, img_backbone=backbone, img_neck=neck, pts_bbox_head=head
    )
