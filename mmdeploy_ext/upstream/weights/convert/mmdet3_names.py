"""Names of tensors in mmdet 3's and mmdet 2.28's state dicts.

Source: state dicts of mmdet 3.3.0 and mmdet 2.28.2 by the same configs: 59 of 66 kinds of detectors agree;
DETR, Deformable DETR, MaskFormer, Mask2Former, RPN alone (plain, guided anchors) and YOLACT differ. Shapes
agree.
"""

import re
from collections.abc import Collection, Iterable

COMMAND = 'convert mmdet3'
Rule = tuple[str, str]
"""Pattern in mmdet 3 -> replacement in mmdet 2."""
LAYER = r'(layers\.\d+\.)'
FFN = (LAYER + r'ffn\.', r'\1ffns.0.')
SELF_FIRST = (
    (LAYER + r'self_attn\.', r'\1attentions.0.'), (LAYER + r'cross_attn\.', r'\1attentions.1.'), FFN
)  # fmt: skip
CROSS_FIRST = (
    (LAYER + r'cross_attn\.', r'\1attentions.0.'), (LAYER + r'self_attn\.', r'\1attentions.1.'), FFN
)  # fmt: skip
"""Layers with self-attention (`SELF_FIRST`) or cross-attention first."""


def _below(prefix: str, new_prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    start = '^' + re.escape(prefix)
    layer_rules = tuple((f'{start}{pattern}', f'{new_prefix}{name}') for pattern, name in rules)
    return layer_rules if prefix == new_prefix else (*layer_rules, (start, new_prefix))


TRANSFORMER = 'bbox_head.transformer.'
PIXELS, MASKS = 'panoptic_head.pixel_decoder.encoder.', 'panoptic_head.transformer_decoder.'
"""Transformers of MaskFormer and Mask2Former, in both."""
DETR_LAYERS: tuple[Rule, ...] = (
    *_below('encoder.', f'{TRANSFORMER}encoder.', SELF_FIRST),
    *_below('decoder.', f'{TRANSFORMER}decoder.', SELF_FIRST),
    (r'^query_embedding\.', 'bbox_head.query_embedding.'),
)
"""DETR's transformer and query embedding."""
DEFORMABLE: tuple[Rule, ...] = (
    *DETR_LAYERS,
    (r'^level_embed$', f'{TRANSFORMER}level_embeds'),
    (r'^reference_points_fc\.', f'{TRANSFORMER}reference_points.'),
    (r'^memory_trans_fc\.', f'{TRANSFORMER}enc_output.'),
    (r'^memory_trans_norm\.', f'{TRANSFORMER}enc_output_norm.'),
    (r'^pos_trans_fc\.', f'{TRANSFORMER}pos_trans.'),
    (r'^pos_trans_norm\.', f'{TRANSFORMER}pos_trans_norm.'),
)
"""Deformable DETR and DINO."""
NECK: Rule = (r'^neck\.convs\.0\.conv\.', 'bbox_head.input_proj.')
CONDITIONAL: tuple[Rule, ...] = (
    *_below('encoder.', f'{TRANSFORMER}encoder.', SELF_FIRST),
    (r'^decoder\.', f'{TRANSFORMER}decoder.'),
    (r'^query_embedding\.', 'bbox_head.query_embedding.'),
    NECK,
)
"""Conditional DETR and DAB-DETR, whose decoders have mmdet 3's names."""
RULES: dict[str, tuple[Rule, ...]] = {
    'ConditionalDETR': CONDITIONAL,
    'DABDETR': CONDITIONAL,
    'DDQDETR': (*DEFORMABLE, (r'^query_map\.', f'{TRANSFORMER}query_map.')),
    'DETR': (*DETR_LAYERS, NECK),
    'DeformableDETR': DEFORMABLE,
    'DINO': DEFORMABLE,
    'MaskFormer': (*_below(PIXELS, PIXELS, SELF_FIRST), *_below(MASKS, MASKS, SELF_FIRST)),
    'Mask2Former': (*_below(PIXELS, PIXELS, SELF_FIRST), *_below(MASKS, MASKS, CROSS_FIRST)),
    'RPN': ((r'^bbox_head\.', 'rpn_head.'),),
    'YOLACT': ((r'^mask_head\.segm_branch\.', 'segm_head.'),),
}
"""Detector -> rules; the first match counts."""
UNUSED_PREFIXES = (
    'bbox_head.aux_cls_branches.',
    'bbox_head.aux_reg_branches.',
    'data_preprocessor.',
    'dn_query_generator.',
    'reid.',
    'student.',
    'teacher_model.',
    'track_head.',
)
"""Tensors without use: of a wrapper, of queries that only train (DINO, DDQ), of parts around a detector."""
INNER_PREFIX = re.compile(r'^(detector|teacher)\.')
"""Of a detector in a tracker, and of the one that a semi-supervised model tests."""


def to_mmdet2_name(key: str, detector: str) -> str:
    """mmdet 2's name of a tensor of mmdet 3, by the rules of its detector."""
    for pattern, replacement in RULES.get(detector, ()):
        name, count = re.subn(pattern, replacement, key, count=1)
        if count:
            return name
    return key


def to_mmdet2_names(weights: Iterable[str], model: Collection[str], detector: str) -> dict[str, str]:
    """Name in a file of mmdet 3 or 2.28 -> name in the `model`, without `UNUSED_PREFIXES`."""
    return {
        key: key if key in model else to_mmdet2_name(INNER_PREFIX.sub('', key), detector)
        for key in weights
        if key in model or not key.startswith(UNUSED_PREFIXES)
    }
