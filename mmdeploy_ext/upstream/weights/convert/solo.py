"""Converts checkpoints of the original SOLO repository (WXinlong/SOLO) to mmdet 2.28.2.

SOLO, Decoupled SOLO, SOLOv2: tensors are renamed; values, shapes and the order of classes stay.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import CheckpointError, UsageError, named
from mmdeploy_ext.base.files import atomic_path, check_writable
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint, listed, load_checkpoint
from mmdeploy_ext.upstream.weights.convert import conversion, solo_names
from mmdeploy_ext.upstream.weights.convert.solo_config import check_config, check_head, fit_config

KEPT_META = ('CLASSES', 'epoch', 'iter')
"""Keys of `meta` that are kept."""
OTHER_CONFIG = (
    ' (named as in mmdet). Pass the config of the same backbone, tower width and depth with --config'
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        state_dict: mmdet's name -> tensor, in the model's order.
        cfg: `Config` that fits it.
        changes: changes of the config, a line each.
        model_tensors: of the config's model, on the meta device.
    """

    state_dict: conversion.Tensors
    cfg: Any
    changes: list[str]
    model_tensors: conversion.Tensors


def convert(source: Checkpoint, cfg: Any) -> Converted:
    """Rename an original checkpoint's tensors, and fit mmdet's config in place by `solo_config.fit_config`.

    Missing `num_batches_tracked` become zeros. CheckpointError: not original SOLO, another head or grids, or
    other names or shapes.
    """
    check_config(cfg)
    with named(source.path):
        head = solo_names.original_head(source.state_dict)
        if not head:
            if any(key.startswith('mask_head.') for key in source.state_dict):
                raise CheckpointError("has mmdet's names (mask_head.*) already: use it as it is")
            raise CheckpointError(
                f'is not a checkpoint of the original SOLO repository: expected bbox_head.solo_*, '
                f'bbox_head.dsolo_* keys, got {listed(list(source.state_dict))}'
            )
        names = solo_names.converted_names(source.state_dict)
        tensors = {name: source.state_dict[key] for key, name in names.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_head(cfg, head, shapes, source.meta.get('config'))
        changes = fit_config(cfg, shapes)
        model_tensors = conversion.model_tensors(cfg)
        for name, tensor in model_tensors.items():
            if name.endswith('num_batches_tracked') and name not in tensors:
                tensors[name] = torch.zeros(tensor.shape, dtype=torch.int64)  # older PyTorch had no counters
        state_dict = conversion.in_model_order(tensors, model_tensors, cfg.filename, OTHER_CONFIG)
        return Converted(state_dict, cfg, changes, model_tensors)


def convert_file(source: str | Path, target: str | Path, cfg: Any) -> tuple[Converted, Path | None]:
    """Convert a file and write it atomically, with a changed config beside it; return both."""
    target = Path(target)
    check_config(cfg)
    conversion.check_output(source, target, cfg.filename)
    checkpoint = load_checkpoint(source)
    converted = convert(checkpoint, cfg)
    conversion.check_numbers(source, converted.state_dict, converted.model_tensors)
    text = conversion.config_text(converted.cfg)
    meta = {key: checkpoint.meta[key] for key in KEPT_META if key in checkpoint.meta}
    meta['config'] = text  # as mmdet does; nothing else in a checkpoint of SOLOv2 tells its grids
    if not converted.changes:
        conversion.save_checkpoint(target, converted.state_dict, meta)
        return converted, None
    config = target.with_suffix('.py')
    text = f'# The config of mmdet that fits {target.name}, written by {tool(solo_names.COMMAND)}.\n{text}'
    check_writable(config)
    if config.exists() and config.read_bytes() != text.encode():
        raise UsageError(f'{config}: already exists with other content; move it away or choose another name')
    with atomic_path(config) as temporary:  # the config gets its name after the checkpoint is written
        temporary.write_text(text, encoding='utf-8')
        conversion.save_checkpoint(target, converted.state_dict, meta)
    return converted, config
