"""The `model` section of VAD's configs, at test time: they differ in the backbone and in sizes."""

from typing import Any

from projects.configs.bevformer_model import CHANNELS, R50, decoder, encoder

PC_RANGE = [-15.0, -30.0, -2.0, 15.0, 30.0, 2.0]


def attend_once(channels: int, heads: int) -> dict[str, Any]:
    """Return a decoder of one layer, in which queries attend to tokens."""
    layer = dict(
        type='BaseTransformerLayer',
        attn_cfgs=[dict(type='MultiheadAttention', embed_dims=channels, num_heads=heads, dropout=0.1)],
        feedforward_channels=2 * channels,
        ffn_cfgs=dict(type='FFN', embed_dims=channels, ffn_drop=0.1),
        operation_order=('cross_attn', 'norm', 'ffn', 'norm'),
    )
    return dict(
        type='CustomTransformerDecoder', num_layers=1, return_intermediate=False, transformerlayers=layer
    )


def vad(
    backbone: dict[str, Any] = R50,
    in_channels: int = 2048,
    channels: int = CHANNELS,
    heads: int = 8,
    side: int = 100,
    layers: int = 3,
    queries: int = 300,
    lines: int = 100,
    boxes: int = 100,
    most_lines: int = 50,
) -> dict[str, Any]:
    """Return the `model` section.

    Args:
        backbone: its config; its last level has `in_channels`.
        in_channels, channels: of the backbone and of everything else.
        heads: of the attentions.
        side: rows, and columns, of the bird's-eye view.
        layers: of the encoder and of the decoders of objects and lines.
        queries, lines: number of queries of objects, and of lines.
        boxes, most_lines: most boxes and lines of a frame.
    """
    once = attend_once(channels, heads)
    transformer = dict(
        type='VADPerceptionTransformer',
        map_num_vec=lines,
        map_num_pts_per_vec=20,
        rotate_prev_bev=True,
        use_shift=True,
        use_can_bus=True,
        embed_dims=channels,
        encoder=encoder(layers, 1, channels, heads, PC_RANGE),
        decoder=decoder(layers, channels, heads),
        map_decoder=dict(decoder(layers, channels, heads), type='MapDetectionTransformerDecoder'),
    )
    head = dict(
        type='VADHead',
        map_thresh=0.5,
        dis_thresh=0.2,
        pe_normalization=True,
        query_thresh=0.0,
        query_use_fix_pad=False,
        ego_his_encoder=None,
        ego_lcf_feat_idx=None,
        ego_agent_decoder=once,
        ego_map_decoder=once,
        motion_decoder=once,
        motion_map_decoder=once,
        use_pe=True,
        bev_h=side,
        bev_w=side,
        num_query=queries,
        num_classes=10,
        in_channels=channels,
        with_box_refine=True,
        as_two_stage=False,
        map_num_vec=lines,
        map_num_classes=3,
        map_num_pts_per_vec=20,
        map_query_embed_type='instance_pts',
        map_code_size=2,
        map_code_weights=[1.0, 1.0, 1.0, 1.0],
        transformer=transformer,
        bbox_coder=dict(
            type='CustomNMSFreeCoder',
            post_center_range=[-20, -35, -10.0, 20, 35, 10.0],
            pc_range=PC_RANGE,
            max_num=boxes,
            voxel_size=[0.15, 0.15, 4],
            num_classes=10,
        ),
        map_bbox_coder=dict(
            type='MapNMSFreeCoder',
            post_center_range=[-20, -35, -20, -35, 20, 35, 20, 35],
            pc_range=PC_RANGE,
            max_num=most_lines,
            voxel_size=[0.15, 0.15, 4],
            num_classes=3,
        ),
        positional_encoding=dict(
            type='LearnedPositionalEncoding', num_feats=channels // 2, row_num_embed=side, col_num_embed=side
        ),
    )
    neck = dict(
        type='FPN',
        in_channels=[in_channels],
        out_channels=channels,
        start_level=0,
        add_extra_convs='on_output',
        num_outs=1,
        relu_before_extra_convs=True,
    )
    return dict(type='VAD', video_test_mode=True, img_backbone=backbone, img_neck=neck, pts_bbox_head=head)
