"""Names of tensors in the original SOLO repository's and mmdet 2.28.2's state dicts.

Source: WXinlong/SOLO f4cd03b `mmdet/models/anchor_heads` and `mask_heads`, mmdet 2.28.2 `models/dense_heads`.
Shapes and classes agree.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from mmdeploy_ext.base.errors import CheckpointError, check_distinct
from mmdeploy_ext.upstream.weights.convert import conversion_command

COMMAND = 'convert solo'
MODULES = (
    ('bbox_head.solo_ins_list', 'mask_head.conv_mask_list'),
    *((f'bbox_head.dsolo_ins_list_{axis}', f'mask_head.conv_mask_list_{axis}') for axis in 'xy'),
    *((f'bbox_head.ins_convs{axis}', f'mask_head.mask_convs{axis}') for axis in ('', '_x', '_y')),
    ('bbox_head.cate_convs', 'mask_head.cls_convs'),
    ('bbox_head.kernel_convs', 'mask_head.kernel_convs'),
    ('bbox_head.solo_cate', 'mask_head.conv_cls'),
    ('bbox_head.dsolo_cate', 'mask_head.conv_cls'),
    ('bbox_head.solo_kernel', 'mask_head.conv_kernel'),
    ('mask_feat_head.convs_all_levels', 'mask_head.mask_feature_head.convs_all_levels'),
    ('mask_feat_head.conv_pred.0', 'mask_head.mask_feature_head.conv_pred'),
    ('backbone', 'backbone'),
    ('neck', 'neck'),
)
OFFSET = re.compile(r'^(.+)_offset\.(weight|bias)$')
HEADS = {
    r'^bbox_head\.solo_kernel\.': 'SOLOV2Head',
    r'^bbox_head\.solo_ins_list\.': 'SOLOHead',
    r'^bbox_head\.ins_convs_x\.': 'DecoupledSOLOHead',
    r'^bbox_head\.dsolo_ins_list_x\.': 'DecoupledSOLOLightHead',
}
"""Pattern of original keys -> head in mmdet; the first match counts."""


def original_head(keys: Iterable[str]) -> str:
    """mmdet's type of an original head, or ''."""
    keys = list(keys)
    return next((head for pattern, head in HEADS.items() if any(re.match(pattern, key) for key in keys)), '')


def modern_offset_name(key: str, keys: Collection[str]) -> str:
    """Present name of an offset layer's tensor, or `key`.

    Old checkpoints write `conv2_offset.weight` for `conv2.conv_offset.weight`; in towers
    `0.conv_offset.weight` is ambiguous and decided by the convolution's weight. Source: mmcv-full 1.7.2,
    `mmcv/ops/modulated_deform_conv.py`, before version 2.
    """
    match = OFFSET.match(key)
    if not match:
        return key
    module, leaf = match.groups()
    is_new = module.endswith('.conv') and f'{module.removesuffix(".conv")}.weight' in keys
    return f'{module}.conv_offset.{leaf}' if f'{module}.weight' in keys and not is_new else key


def converted_names(keys: Collection[str]) -> dict[str, str]:
    """Original name -> mmdet's name; CheckpointError: no rule, or a repeated name."""
    names = {}
    for key in keys:
        modern = modern_offset_name(key, keys)
        names[key] = next((name for old, new in MODULES if (name := _move(modern, old, new))), '')
    unknown = [key for key, name in names.items() if not name]
    if unknown:
        raise CheckpointError(
            f'{len(unknown)} keys belong to no model of the original SOLO repository: {unknown[:5]}'
        )
    check_distinct(names.items())
    return names


def original_name(key: str, decoupled: bool = False) -> str:
    """Original name of mmdet's tensor; a decoupled head's classes are `dsolo_cate`, not `solo_cate`."""
    pairs = reversed(MODULES) if decoupled else MODULES
    return next((name for original, new in pairs if (name := _move(key, new, original))), key)


def _move(key: str, old: str, new: str) -> str:
    return f'{new}{key.removeprefix(old)}' if key.startswith(f'{old}.') else ''


def advice(path: str, keys: Collection[Any]) -> str:
    """Message for an original SOLO, or ''."""
    if not original_head(map(str, keys)):
        return ''
    return (
        f'{path}: is a checkpoint of the original SOLO repository, with other names than in mmdet; '
        f'convert it first: {conversion_command(COMMAND, path)}'
    )
