"""Names of tensors in the original SOLO repository's state dicts and in mmdet 2.28.2's.

Source of the names: WXinlong/SOLO f4cd03b `mmdet/models/anchor_heads` and `mask_heads`, mmdet 2.28.2
`models/dense_heads`. Both build the same modules; no tensor changes its shape, no class is shifted.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from mmdeploy_ext.core.errors import CheckpointError, check_distinct
from mmdeploy_ext.weights.convert import conversion_command

COMMAND = 'convert solo'
"""The command that converts these checkpoints, a key of `core/commands.py`."""
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
"""Path of a module in the original repository and in mmdet; names below it are the same."""
OFFSET = re.compile(r'^(.+)_offset\.(weight|bias)$')
"""Name of a tensor of a layer that gives the offsets of a deformable convolution, in both spellings."""
HEADS = {
    r'^bbox_head\.solo_kernel\.': 'SOLOV2Head',
    r'^bbox_head\.solo_ins_list\.': 'SOLOHead',
    r'^bbox_head\.ins_convs_x\.': 'DecoupledSOLOHead',
    r'^bbox_head\.dsolo_ins_list_x\.': 'DecoupledSOLOLightHead',
}
"""Pattern of keys in the original repository -> type of the head in mmdet; the first with a match counts, as
a `DecoupledSOLOHead` has the keys of the last, too."""


def original_head(keys: Iterable[str]) -> str:
    """Return mmdet's type for the head of a state dict with these keys; '' if they are not the original's."""
    keys = list(keys)
    return next((head for pattern, head in HEADS.items() if any(re.match(pattern, key) for key in keys)), '')


def modern_offset_name(key: str, keys: Collection[str]) -> str:
    """Return the present name of `key` if it is of the offset layer of a deformable convolution, else `key`.

    `keys` are all names of the state dict. Old checkpoints write `conv2_offset.weight` for
    `conv2.conv_offset.weight`. In a tower the convolution itself is called `conv`, so that the old name
    `0.conv_offset.weight` looks like a new one; the two differ in the path of the convolution's weight.

    Source: the two spellings of mmcv-full 1.7.2, `mmcv/ops/modulated_deform_conv.py`, before version 2.
    """
    match = OFFSET.match(key)
    if not match:
        return key
    module, leaf = match.groups()
    is_new = module.endswith('.conv') and f'{module.removesuffix(".conv")}.weight' in keys
    return f'{module}.conv_offset.{leaf}' if f'{module}.weight' in keys and not is_new else key


def converted_names(keys: Collection[str]) -> dict[str, str]:
    """Return original name -> mmdet's name for every key of an original state dict.

    CheckpointError: a key has no rule, or two keys get the same name.
    """
    names = {}
    for key in keys:
        modern = modern_offset_name(key, keys)
        names[key] = next((name for old, new in MODULES if (name := _move(modern, old, new))), '')
    unknown = [key for key, name in names.items() if not name]
    if unknown:
        raise CheckpointError(
            f'{len(unknown)} keys belong to no model of the original SOLO repository: {unknown[:5]}; '
            f'expected backbone.*, neck.*, bbox_head.* and mask_feat_head.* as that repository saves them'
        )
    check_distinct(names.items())
    return names


def original_name(key: str, decoupled: bool = False) -> str:
    """Return the original repository's name of `key`, a tensor of mmdet; other names stay as they are.

    `decoupled` is whether the head is a decoupled SOLO, whose layers of classes the original calls
    `dsolo_cate`, not `solo_cate`.
    """
    pairs = reversed(MODULES) if decoupled else MODULES
    return next((name for original, new in pairs if (name := _move(key, new, original))), key)


def _move(key: str, old: str, new: str) -> str:
    """Return the key of a tensor below the module `old` as that below `new`; '' for other tensors."""
    return f'{new}{key.removeprefix(old)}' if key.startswith(f'{old}.') else ''


def advice(path: str, stage: str, keys: Collection[Any]) -> str:
    """Return the message for an original SOLO, '' for others; see `checkpoint.conversion_advice`.

    Args:
        path: path of the file.
        stage: how far it was read: 'unreadable', 'content' (a dict without a state dict) or 'tensors'.
        keys: empty if it is unreadable, keys of the dict, or names of the state dict.
    """
    if stage != 'tensors' or not original_head(keys):
        return ''
    return (
        f'{path}: is a checkpoint of the original SOLO repository, whose names mmdet does not know; convert '
        f'it first: {conversion_command(COMMAND, path)}'
    )
