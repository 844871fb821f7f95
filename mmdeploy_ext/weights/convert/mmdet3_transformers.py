"""Models with transformers: how mmdet 3 describes their layers, as mmdet 2.28 takes them.

Source: mmdet 3.3.0 `models/layers/transformer`, mmdet 2.28.2 `models/utils/transformer.py`, and the configs
of both.
"""

from typing import Any

from mmdeploy_ext.core.errors import ConfigError

SELF, CROSS, FFN = ('self_attn', 'norm'), ('cross_attn', 'norm'), ('ffn', 'norm')
PLAIN, DEFORMABLE = 'MultiheadAttention', 'MultiScaleDeformableAttention'
PLAIN_DEFAULTS = dict(embed_dims=256, num_heads=8, dropout=0.0)
FFN_DEFAULTS = dict(embed_dims=256, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0)
FFN_DEFAULTS['act_cfg'] = dict(type='ReLU', inplace=True)
LAYER_KEYS = {'self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg', 'norm_cfg', 'init_cfg'}
STACK_KEYS = {'num_layers', 'layer_cfg', 'init_cfg', 'return_intermediate', 'post_norm_cfg'}


def refuse_others(where: str, given: dict[str, Any], known: set[str]) -> None:
    """Refuse keys that are not known; the ConfigError names the first, and no file."""
    if other := sorted(given.keys() - known):
        raise ConfigError(
            f'{where}.{other[0]}={given[other[0]]!r} is not known here; expected no key but '
            f'{", ".join(sorted(known))}'
        )


def _attention(where: str, cfg: dict[str, Any], kind: str) -> dict[str, Any]:
    cfg = {**(PLAIN_DEFAULTS if kind == PLAIN else {}), **cfg}
    if not cfg.pop('batch_first', True):
        raise ConfigError(f'{where}.batch_first=False: expected True, as all of mmdet 3 has it')
    return dict(type=kind, **cfg)


def _stack(where: str, cfg: dict[str, Any], kinds: dict[str, str], order: tuple[str, ...]) -> dict[str, Any]:
    """Return what an encoder and a decoder share: `num_layers` and `transformerlayers`."""
    refuse_others(where, cfg, STACK_KEYS)
    layer = cfg.get('layer_cfg') or {}
    refuse_others(f'{where}.layer_cfg', layer, LAYER_KEYS)
    ffn = {**FFN_DEFAULTS, **(layer.get('ffn_cfg') or {})}
    attentions = [
        _attention(f'{where}.layer_cfg.{name}_cfg', layer.get(f'{name}_cfg') or {}, kinds[name])
        for name in order if name in kinds
    ]  # fmt: skip
    same = attentions[0] == attentions[-1]
    layers = dict(
        type='BaseTransformerLayer',
        attn_cfgs=attentions[0] if same else attentions,  # heads ask it for num_heads
        ffn_cfgs=dict(type='FFN', **ffn),
        operation_order=order,
    )
    if 'cross_attn' in kinds:
        layers |= dict(type='DetrTransformerDecoderLayer', feedforward_channels=ffn['feedforward_channels'])
    if layer.get('norm_cfg'):
        layers['norm_cfg'] = layer['norm_cfg']
    return dict(num_layers=cfg['num_layers'], transformerlayers=layers)


def encoder(where: str, cfg: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return an encoder; `kind` is of its attention."""
    return dict(type='DetrTransformerEncoder', **_stack(where, cfg, dict(self_attn=kind), SELF + FFN))


def decoder(
    where: str, cfg: dict[str, Any], kind: str, of: str = 'DetrTransformerDecoder', cross_first: bool = False
) -> dict[str, Any]:
    """Return a decoder; `kind` is of its attention to the pictures, which Mask2Former computes first."""
    order = (CROSS + SELF if cross_first else SELF + CROSS) + FFN
    stack = _stack(where, cfg, dict(self_attn=PLAIN, cross_attn=kind), order)
    norm = {}
    if of == 'DetrTransformerDecoder':
        norm = dict(post_norm_cfg=cfg.get('post_norm_cfg', dict(type='LN')))
    elif cfg.get('post_norm_cfg') is not None:
        raise ConfigError(f'{where}.post_norm_cfg={cfg["post_norm_cfg"]!r}: expected None')
    return dict(type=of, return_intermediate=cfg.get('return_intermediate', True), **norm, **stack)


def positions(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return an encoding of positions, which has no `type` in mmdet 3."""
    return dict(type='SinePositionalEncoding', **cfg)


def detr(model: dict[str, Any]) -> None:
    """Bring the transformer of DETR into its head, in place; refuses a neck that mmdet 2.28's has not."""
    neck = model.pop('neck')
    for key, value in dict(kernel_size=1, act_cfg=None, norm_cfg=None, num_outs=1).items():
        if neck.get(key, value) != value:
            raise ConfigError(
                f'model.neck.{key}={neck[key]!r}: expected {value!r}, what the projection of DETR is'
            )
    if neck.get('type') != 'ChannelMapper' or len(neck['in_channels']) != 1:
        raise ConfigError(f'model.neck={neck!r}: expected a ChannelMapper of one level')
    head = model['bbox_head']
    head.pop('embed_dims', None)
    parts = dict(
        encoder=encoder('model.encoder', model.pop('encoder'), PLAIN),
        decoder=decoder('model.decoder', model.pop('decoder'), PLAIN),
    )
    head.update(
        num_query=model.pop('num_queries'),
        in_channels=neck['in_channels'][0],
        transformer=dict(type='Transformer', **parts),
        positional_encoding=positions(model.pop('positional_encoding')),
    )


def deformable_detr(model: dict[str, Any]) -> None:
    """Bring the transformer of Deformable DETR into its head, in place."""
    head, levels = model['bbox_head'], model.pop('num_feature_levels', 4)
    head.pop('embed_dims', None)
    two_stage, queries = model.pop('as_two_stage', False), model.pop('num_queries')
    own = 'DeformableDetrTransformer'
    parts = dict(
        encoder=encoder('model.encoder', model.pop('encoder'), DEFORMABLE),
        decoder=decoder('model.decoder', model.pop('decoder'), DEFORMABLE, of=f'{own}Decoder'),
    )
    transformer = dict(type=own, num_feature_levels=levels, **parts)
    if two_stage:
        transformer.update(two_stage_num_proposals=queries)
    head.update(
        num_query=queries,
        in_channels=2048,  # asked for by the class that it inherits from, and not used
        as_two_stage=two_stage,
        with_box_refine=model.pop('with_box_refine', False),
        transformer=transformer,
        positional_encoding=positions(model.pop('positional_encoding')),
    )


def dino(model: dict[str, Any]) -> None:
    """Bring the transformer of DINO into its head, in place; its denoising is of training."""
    model.pop('dn_cfg', None)
    model['train_cfg'] = None
    deformable_detr(model)
    own = model['bbox_head']['transformer']
    own['type'], own['decoder']['type'] = 'DinoTransformer', 'DinoTransformerDecoder'
    model['bbox_head'].pop('sync_cls_avg_factor', None)


def mask_former(model: dict[str, Any]) -> None:
    """Rewrite the layers of MaskFormer and Mask2Former, in place."""
    head, of_masks = model['panoptic_head'], model['type'] == 'Mask2Former'
    pixels, where = head['pixel_decoder'], 'model.panoptic_head'
    kind = DEFORMABLE if of_masks else PLAIN
    if 'encoder' in pixels:
        pixels['encoder'] = encoder(f'{where}.pixel_decoder.encoder', pixels['encoder'], kind)
        pixels['positional_encoding'] = positions(pixels['positional_encoding'])
    head['positional_encoding'] = positions(head['positional_encoding'])
    head['transformer_decoder'] = decoder(
        f'{where}.transformer_decoder', head['transformer_decoder'], PLAIN, cross_first=of_masks
    )
