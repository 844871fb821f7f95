"""The `model` section of PETR's and PETRv2's configs: they differ in the backbone and the head."""

from typing import Any

R50_DCN = dict(
    type='ResNet',
    depth=50,
    num_stages=4,
    frozen_stages=-1,
    norm_cfg=dict(type='BN2d', requires_grad=False),
    norm_eval=True,
    style='caffe',
    dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, False, True, True),
)
"""Its `out_indices` are those of a config."""
VOVNET_99 = dict(
    type='VoVNetCP',
    spec_name='V-99-eSE',
    norm_eval=True,
    frozen_stages=-1,
    input_ch=3,
    out_features=('stage4', 'stage5'),
)


def transformer(layers: int, channels: int, heads: int, hidden: int) -> dict[str, Any]:
    """Return the decoder; `hidden` are the channels inside its feed-forward networks."""
    attentions = [
        dict(type=attention, embed_dims=channels, num_heads=heads, dropout=0.1)
        for attention in ('MultiheadAttention', 'PETRMultiheadAttention')
    ]
    layer = dict(
        type='PETRTransformerDecoderLayer',
        attn_cfgs=attentions,
        feedforward_channels=hidden,
        ffn_dropout=0.1,
        operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
    )
    decoder = dict(
        type='PETRTransformerDecoder', return_intermediate=True, num_layers=layers, transformerlayers=layer
    )
    return dict(type='PETRTransformer', decoder=decoder)


def petr(
    backbone: dict[str, Any],
    in_channels: list[int],
    second: bool = False,
    channels: int = 256,
    heads: int = 8,
    hidden: int = 2048,
    layers: int = 6,
    queries: int = 900,
    max_num: int = 300,
    reach: float = 51.2,
) -> dict[str, Any]:
    """Return the `model` section.

    Args:
        backbone: its config.
        in_channels: channels of the backbone's levels; one level has no neck.
        second: whether the head is PETRv2's.
        channels: number of channels of features and queries.
        heads: number of heads of the attentions.
        hidden: channels of the feed-forward networks.
        layers: number of layers of the decoder.
        queries: number of object queries.
        max_num: most boxes of a frame.
        reach: half of the side of the range of boxes, m; positions reach 10 m farther.
    """
    position_range = [-reach - 10.0, -reach - 10.0, -10.0, reach + 10.0, reach + 10.0, 10.0]
    coder = dict(
        type='NMSFreeCoder',
        post_center_range=position_range,
        pc_range=[-reach, -reach, -5.0, reach, reach, 3.0],
        max_num=max_num,
        voxel_size=[0.2, 0.2, 8],
        num_classes=10,
    )
    head = dict(
        type='PETRv2Head' if second else 'PETRHead',
        num_classes=10,
        in_channels=channels if len(in_channels) > 1 else in_channels[0],
        num_query=queries,
        LID=True,
        with_position=True,
        with_multiview=True,
        position_range=position_range,
        normedlinear=False,
        transformer=transformer(layers, channels, heads, hidden),
        bbox_coder=coder,
        positional_encoding=dict(type='SinePositionalEncoding3D', num_feats=channels // 2, normalize=True),
    )
    if second:
        head.update(with_fpe=True, with_time=True, with_multi=True)
    if channels != 256:  # the number of upstream's head, which has no such option
        head['embed_dims'] = channels
    model = dict(type='Petr3D', use_grid_mask=True, img_backbone=backbone, pts_bbox_head=head)
    if len(in_channels) > 1:
        model['img_neck'] = dict(
            type='CPFPN', in_channels=in_channels, out_channels=channels, num_outs=len(in_channels)
        )
    return model


def petr_toy(second: bool = False) -> dict[str, Any]:
    """Return `petr` in small, of a ResNet-18 of 16 base channels; for `second` see there."""
    backbone = dict(
        type='ResNet', depth=18, base_channels=16, stem_channels=16, out_indices=(2, 3), norm_eval=True,
        style='pytorch',
    )  # fmt: skip
    return petr(
        backbone,
        [64, 128],
        second,
        channels=64,
        heads=4,
        hidden=256,
        layers=2,
        queries=60,
        max_num=50,
        reach=32.0,
    )
