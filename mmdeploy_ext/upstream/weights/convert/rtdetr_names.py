"""Names of RT-DETR's tensors in the original repository (also ours) and in transformers.

Source: state dicts of lyuwenyu/RT-DETR's rtdetr_pytorch and of transformers 5.23.0, r18vd and r50vd;
transformers 4.x (and the hub) spells some names differently.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from mmdeploy_ext.upstream.weights.convert import conversion_command

COMMAND = 'convert rtdetr'
PADDLE_SUFFIX = '.pdparams'
_STAGE = r'^model\.backbone\.model\.encoder\.stages\.(\d+)\.layers\.'
_EMBEDDER = r'^model\.backbone\.model\.embedder\.embedder\.'
_AIFI = r'^model\.encoder\.(?:aifi|encoder)\.(\d+)\.layers\.(\d+)\.'
_LAYER = r'^model\.decoder\.layers\.(\d+)\.'
# a convolution and its normalisation, in transformers and in the original
_CONV_NORMS = (
    (_STAGE + r'0\.shortcut\.1', r'backbone.res_layers.\1.blocks.0.short.conv'),
    (_STAGE + r'0\.shortcut', r'backbone.res_layers.\1.blocks.0.short'),
    (_STAGE + r'(\d+)\.layer\.0', r'backbone.res_layers.\1.blocks.\2.branch2a'),
    (_STAGE + r'(\d+)\.layer\.1', r'backbone.res_layers.\1.blocks.\2.branch2b'),
    (_STAGE + r'(\d+)\.layer\.2', r'backbone.res_layers.\1.blocks.\2.branch2c'),
    *((rf'{_EMBEDDER}{index}', f'backbone.conv1.conv1_{index + 1}') for index in range(3)),
)
# name of transformers -> original; the first match wins
_RULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        *((rf'{pattern}\.convolution\.', f'{name}.conv.') for pattern, name in _CONV_NORMS),
        *((rf'{pattern}\.normalization\.', f'{name}.norm.') for pattern, name in _CONV_NORMS),
        (r'^model\.encoder_input_proj\.', 'encoder.input_proj.'),
        (_AIFI + r'self_attn\.(?:o_proj|out_proj)\.', r'encoder.encoder.\1.layers.\2.self_attn.out_proj.'),
        (_AIFI + r'(?:mlp\.)?fc([12])\.', r'encoder.encoder.\1.layers.\2.linear\3.'),
        (_AIFI + r'self_attn_layer_norm\.', r'encoder.encoder.\1.layers.\2.norm1.'),
        (_AIFI + r'final_layer_norm\.', r'encoder.encoder.\1.layers.\2.norm2.'),
        (_AIFI, r'encoder.encoder.\1.layers.\2.'),
        (r'^model\.encoder\.(lateral_convs|fpn_blocks|downsample_convs|pan_blocks)\.', r'encoder.\1.'),
        (r'^model\.decoder_input_proj\.(\d+)\.0\.', r'decoder.input_proj.\1.conv.'),
        (r'^model\.decoder_input_proj\.(\d+)\.1\.', r'decoder.input_proj.\1.norm.'),
        (_LAYER + r'self_attn\.(?:o_proj|out_proj)\.', r'decoder.decoder.layers.\1.self_attn.out_proj.'),
        (_LAYER + r'encoder_attn\.', r'decoder.decoder.layers.\1.cross_attn.'),
        (_LAYER + r'(?:mlp\.)?fc([12])\.', r'decoder.decoder.layers.\1.linear\2.'),
        (_LAYER + r'self_attn_layer_norm\.', r'decoder.decoder.layers.\1.norm1.'),
        (_LAYER + r'encoder_attn_layer_norm\.', r'decoder.decoder.layers.\1.norm2.'),
        (_LAYER + r'final_layer_norm\.', r'decoder.decoder.layers.\1.norm3.'),
        (_LAYER, r'decoder.decoder.layers.\1.'),
        (r'^model\.decoder\.class_embed\.', 'decoder.dec_score_head.'),
        (r'^model\.decoder\.bbox_embed\.', 'decoder.dec_bbox_head.'),
        (r'^model\.decoder\.query_pos_head\.', 'decoder.query_pos_head.'),
        (r'^model\.(denoising_class_embed|enc_output|enc_score_head|enc_bbox_head)\.', r'decoder.\1.'),
    )
)
HEAD_COPIES = re.compile(r'^(class_embed|bbox_embed)\.')
"""Second names of the decoder's heads by transformers' 4.x conversion script."""
SPLIT_PROJECTION = re.compile(r'^(.*\.self_attn\.)([qkv])_proj\.(weight|bias)$')
"""Projections in transformers; the original concatenates their rows."""
FUSED_BLOCK = re.compile(r'^encoder\.(?:fpn|pan)_blocks\.\d+\.bottlenecks\.\d+\.conv\.(?:weight|bias)$')
"""Sums of two branches by the original's `deploy()`."""


def original_name(key: str) -> str:
    """The original's name of a tensor of transformers; projections stay apart, see `SPLIT_PROJECTION`."""
    for pattern, name in _RULES:
        if pattern.match(key):
            return pattern.sub(name, key, count=1)
    return key


def is_transformers(keys: Iterable[str]) -> bool:
    return any(key.startswith('model.backbone.model.') for key in keys)


def is_original(keys: Iterable[str]) -> bool:
    return any(key.startswith('backbone.res_layers.') for key in keys)


def advice(path: str, keys: Collection[Any]) -> str:
    """Message for a checkpoint of the original RT-DETR or of transformers, or ''."""
    command = conversion_command(COMMAND, path)
    if is_transformers(map(str, keys)):
        return f"{path}: has transformers' names of RT-DETR; convert it first: {command}"
    if {'ema', 'model'} & set(keys):
        return (
            f'{path}: has {sorted(map(str, keys))}; if it is the original RT-DETR, convert it: {command}; '
            f"otherwise save its weights as {{'state_dict': ...}}"
        )
    return ''
