"""Names of mmdet 3's state dicts, and what mmdet 2.28 calls the same tensors.

Source: the state dicts that mmdet 3.3.0 and mmdet 2.28.2 build of the same configs, compared key by key: of
66 kinds of detectors 59 have the same names; the others are DETR, Deformable DETR, MaskFormer,
Mask2Former, RPN alone (plain and with guided anchors) and YOLACT. No tensor changes its shape.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from mmdeploy_ext.weights.convert import sources

COMMAND = 'convert-mmdet3'

Rule = tuple[str, str]
LAYER = r'(layers\.\d+\.)'
FFN = (LAYER + r'ffn\.', r'\1ffns.0.')
SELF_FIRST, CROSS_FIRST = (
    (*((LAYER + rf'{kind}_attn\.', rf'\1attentions.{place}.') for place, kind in enumerate(order)), FFN)
    for order in (('self', 'cross'), ('cross', 'self'))
)


def _within(prefix: str, target: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return rules of layers for the keys behind a prefix, which becomes the target."""
    start = '^' + re.escape(prefix)
    moved = tuple((f'{start}{pattern}', f'{target}{new}') for pattern, new in rules)
    return (*moved, *(((start, target),) if prefix != target else ()))


INSIDE, PIXELS, MASKS = (
    'bbox_head.transformer.', 'panoptic_head.pixel_decoder.encoder.', 'panoptic_head.transformer_decoder.'
)  # fmt: skip
TRANSFORMER = tuple(
    rule for part in ('encoder.', 'decoder.') for rule in _within(part, f'{INSIDE}{part}', SELF_FIRST)
)
QUERIES = (r'^query_embedding\.', 'bbox_head.query_embedding.')
DEFORMABLE: tuple[Rule, ...] = (
    *TRANSFORMER,
    QUERIES,
    (r'^level_embed$', f'{INSIDE}level_embeds'),
    (r'^reference_points_fc\.', f'{INSIDE}reference_points.'),
    (r'^memory_trans_fc\.', f'{INSIDE}enc_output.'),
    (r'^memory_trans_norm\.', f'{INSIDE}enc_output_norm.'),
    (r'^pos_trans_fc\.', f'{INSIDE}pos_trans.'),
    (r'^pos_trans_norm\.', f'{INSIDE}pos_trans_norm.'),
)
RENAMED: dict[str, tuple[Rule, ...]] = {
    'DETR': (*TRANSFORMER, QUERIES, (r'^neck\.convs\.0\.conv\.', 'bbox_head.input_proj.')),
    'DeformableDETR': DEFORMABLE,
    'DINO': DEFORMABLE,
    'MaskFormer': (*_within(PIXELS, PIXELS, SELF_FIRST), *_within(MASKS, MASKS, SELF_FIRST)),
    'Mask2Former': (*_within(PIXELS, PIXELS, SELF_FIRST), *_within(MASKS, MASKS, CROSS_FIRST)),
    'RPN': ((r'^bbox_head\.', 'rpn_head.'),),
    'YOLACT': ((r'^mask_head\.segm_branch\.', 'segm_head.'),),
}
"""Type of a detector -> pattern of a name in mmdet 3 and what takes its place; the first that fits counts."""
OWN_NAMES = re.compile(
    r'^(?:(?:encoder|decoder)\.layers\.\d+\.(?:self_attn|cross_attn|ffn)\.|panoptic_head\.(?:pixel_decoder\.encoder|'
    r'transformer_decoder)\.layers\.\d+\.(?:self_attn|cross_attn|ffn)\.|bbox_head\.rpn_conv\.|'
    r'mask_head\.segm_branch\.|memory_trans_fc\.)'
)
"""Names that mmdet 3 alone has."""

NOT_OF_THE_MODEL = ('data_preprocessor.', 'dn_query_generator.')
"""Prefixes of tensors that no result depends on: mean and std, where a wrapper made them persistent; classes
of the boxes that DINO learns from noise by."""


def renamed(key: str, detector: str) -> str:
    """Return mmdet 2's name of a tensor of mmdet 3; both call the type of the detector the same."""
    for pattern, new in RENAMED.get(detector, ()):
        name, count = re.subn(pattern, new, key, count=1)
        if count:
            return name
    return key


def _advice(path: str, found: str, keys: Collection[Any]) -> str:
    if found != 'tensors' or not any(OWN_NAMES.match(str(key)) for key in keys):
        return ''
    return (
        f'{path}: has names of mmdet 3 that mmdet 2.28 does not know; convert it first: '
        f'{sources.conversion(COMMAND, path)}'
    )


sources.KNOWN.append(_advice)
