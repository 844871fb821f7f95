"""Names of tensors in mmdet 3's state dicts and in mmdet 2.28's.

Source: the state dicts that mmdet 3.3.0 and mmdet 2.28.2 build of the same configs, compared key by key: of
66 kinds of detectors 59 have the same names; the others are DETR, Deformable DETR, MaskFormer,
Mask2Former, RPN alone (plain and with guided anchors) and YOLACT. No tensor changes its shape.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from mmdeploy_ext.weights.convert import conversion_command

COMMAND = 'convert mmdet3'
"""The command that converts these checkpoints, a key of `core/commands.py`."""
Rule = tuple[str, str]
"""Pattern of a part of a name in mmdet 3, and its replacement in mmdet 2."""
LAYER = r'(layers\.\d+\.)'
"""Pattern of the path of a layer of a transformer."""
FFN = (LAYER + r'ffn\.', r'\1ffns.0.')
"""Rule of the feed-forward network of a layer."""
SELF_FIRST = (
    (LAYER + r'self_attn\.', r'\1attentions.0.'), (LAYER + r'cross_attn\.', r'\1attentions.1.'), FFN
)  # fmt: skip
CROSS_FIRST = (
    (LAYER + r'cross_attn\.', r'\1attentions.0.'), (LAYER + r'self_attn\.', r'\1attentions.1.'), FFN
)  # fmt: skip
"""Rules of the layers of a transformer, with self-attention first (`SELF_FIRST`) or cross-attention first."""


def _below(prefix: str, new_prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules of layers for the names with a prefix, which is replaced by a new one."""
    start = '^' + re.escape(prefix)
    layer_rules = tuple((f'{start}{pattern}', f'{new_prefix}{name}') for pattern, name in rules)
    return layer_rules if prefix == new_prefix else (*layer_rules, (start, new_prefix))


TRANSFORMER = 'bbox_head.transformer.'
"""Prefix of the transformer of DETR and its like in mmdet 2."""
PIXELS, MASKS = 'panoptic_head.pixel_decoder.encoder.', 'panoptic_head.transformer_decoder.'
"""Prefixes of the transformers of MaskFormer and Mask2Former, in both versions."""
DETR_LAYERS: tuple[Rule, ...] = (
    *_below('encoder.', f'{TRANSFORMER}encoder.', SELF_FIRST),
    *_below('decoder.', f'{TRANSFORMER}decoder.', SELF_FIRST),
    (r'^query_embedding\.', 'bbox_head.query_embedding.'),
)
"""Rules of DETR's transformer and of the embedding of its queries."""
DEFORMABLE: tuple[Rule, ...] = (
    *DETR_LAYERS,
    (r'^level_embed$', f'{TRANSFORMER}level_embeds'),
    (r'^reference_points_fc\.', f'{TRANSFORMER}reference_points.'),
    (r'^memory_trans_fc\.', f'{TRANSFORMER}enc_output.'),
    (r'^memory_trans_norm\.', f'{TRANSFORMER}enc_output_norm.'),
    (r'^pos_trans_fc\.', f'{TRANSFORMER}pos_trans.'),
    (r'^pos_trans_norm\.', f'{TRANSFORMER}pos_trans_norm.'),
)
"""Rules of Deformable DETR and DINO."""
RULES: dict[str, tuple[Rule, ...]] = {
    'DETR': (*DETR_LAYERS, (r'^neck\.convs\.0\.conv\.', 'bbox_head.input_proj.')),
    'DeformableDETR': DEFORMABLE,
    'DINO': DEFORMABLE,
    'MaskFormer': (*_below(PIXELS, PIXELS, SELF_FIRST), *_below(MASKS, MASKS, SELF_FIRST)),
    'Mask2Former': (*_below(PIXELS, PIXELS, SELF_FIRST), *_below(MASKS, MASKS, CROSS_FIRST)),
    'RPN': ((r'^bbox_head\.', 'rpn_head.'),),
    'YOLACT': ((r'^mask_head\.segm_branch\.', 'segm_head.'),),
}
"""Type of a detector -> pattern of a name in mmdet 3 and its replacement; the first match counts."""
MMDET3_NAMES = re.compile(
    r'^(?:(?:encoder|decoder)\.layers\.\d+\.(?:self_attn|cross_attn|ffn)\.|panoptic_head\.(?:pixel_decoder\.encoder|'
    r'transformer_decoder)\.layers\.\d+\.(?:self_attn|cross_attn|ffn)\.|bbox_head\.rpn_conv\.|'
    r'mask_head\.segm_branch\.|memory_trans_fc\.)'
)
"""Some of the names that only mmdet 3 has: each kind of detector with a rule in `RULES` has one of them."""

UNUSED_PREFIXES = ('data_preprocessor.', 'dn_query_generator.')
"""Prefixes of tensors that no detection depends on: mean and std, which a wrapper may save; the embeddings of
DINO's denoising queries, which only training uses."""


def to_mmdet2_name(key: str, detector: str) -> str:
    """Return mmdet 2's name of the tensor `key` of mmdet 3; names without a rule stay as they are.

    `detector` is the type of the detector, the same in both versions; of types that `RULES` lacks all names
    stay.
    """
    for pattern, replacement in RULES.get(detector, ()):
        name, count = re.subn(pattern, replacement, key, count=1)
        if count:
            return name
    return key


def advice(path: str, stage: str, keys: Collection[Any]) -> str:
    """Return the message for a checkpoint with names that only mmdet 3 has, '' for others.

    Most detectors of mmdet 3 have mmdet 2's names, and need none. See `checkpoint.conversion_advice`.

    Args:
        path: path of the file.
        stage: how far it was read: 'unreadable', 'content' (a dict without a state dict) or 'tensors'.
        keys: empty if it is unreadable, keys of the dict, or names of the state dict.
    """
    if stage != 'tensors' or not any(MMDET3_NAMES.match(str(key)) for key in keys):
        return ''
    return (
        f'{path}: has names of mmdet 3 that mmdet 2.28 does not know; convert it first: '
        f'{conversion_command(COMMAND, path)}'
    )
