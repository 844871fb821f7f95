"""Converts checkpoints of the original SOLO repository (WXinlong/SOLO) to those of mmdet 2.28.2.

They are of SOLO, Decoupled SOLO, its light models, and SOLOv2. Both repositories build the same modules, so
that tensors are renamed and keep their values, shapes and types; classes have one order (see `solo_names`).
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import CheckpointError, ConfigError, UsageError
from mmdeploy_ext.core.files import atomic_path, check_writable
from mmdeploy_ext.weights.checkpoint import Checkpoint, listed, load_checkpoint, naming
from mmdeploy_ext.weights.convert import conversion, solo_names
from mmdeploy_ext.weights.convert.solo_config import check_config, check_head, fit_config

KEPT_META = ('CLASSES', 'epoch', 'iter')
"""Keys of the file's `meta` that the converted file has, too, if their values are whole numbers, texts or
lists of texts."""
OTHER_CONFIG = (
    ' (named as in mmdet). Give the config of the same backbone, tower width and depth with --config'
)
"""End of the message about a checkpoint that does not fit the config."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        state_dict: mmdet's name -> tensor of the file, in the model's order.
        cfg: mmcv's `Config`, which fits the checkpoint.
        changes: the changes that made it fit, one line each; [] if it was not changed.
        model_tensors: name -> tensor of the model that the config builds, on PyTorch's meta device, which has
            shapes and types without values.
    """

    state_dict: conversion.Tensors
    cfg: Any
    changes: list[str]
    model_tensors: conversion.Tensors


def convert(source: Checkpoint, cfg: Any) -> Converted:
    """Rename the tensors of an original checkpoint, and change mmdet's config in place to fit it.

    Tensors that older PyTorch did not save (`num_batches_tracked`) are added as zeros.

    Args:
        source: the original checkpoint.
        cfg: mmcv's `Config` of mmdet's model of the same kind. What the original repository does otherwise is
            changed in it by `solo_config.fit_config`: depth and deformable convolutions of the backbone, the
            towers of the head and their normalisation, deformable convolutions of SOLOv2's mask features, and
            the test size of light models with DCN. It may have been changed if an error is raised.

    Raises:
        CheckpointError: it is not an original SOLO checkpoint, has another head or other grids than the
            config, or its tensors differ in names or shapes from those of the config's model.
        ConfigError: the config is not of SOLO, has a value of a wrong type, or its model cannot be built.
    """
    check_config(cfg)
    with naming(source.path):
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
    """Convert the file `source` for mmdet's config `cfg` and write it to the file `target`.

    The new file has `state_dict` and `meta`, as mmdet's own. An older file of its name is replaced at once.
    If the config had to be changed (in place, see `convert`), it is written beside `target`, with the suffix
    `.py`; otherwise an older config there stays as it is.

    Returns:
        What was converted, and the path of the new config, None if it was not changed.

    Raises:
        CheckpointError: as `load_checkpoint` and `convert`; or weights that are not finite, or are integers
            (quantised) where the model has floating-point numbers.
        ConfigError: as `convert`; or the config has values that cannot be written as text.
        UsageError: the target is the source or the config, is no name of a checkpoint, or cannot be written;
            or a config with other content has the name of the new one.
    """
    target = Path(target)
    check_config(cfg)
    conversion.check_output(source, target, cfg.filename)
    checkpoint = load_checkpoint(source)
    converted = convert(checkpoint, cfg)
    conversion.check_numbers(source, converted.state_dict, converted.model_tensors)
    try:
        text = conversion.escaped_text(converted.cfg)
    except Exception as error:  # of yapf, which cannot parse values that are not literals
        raise ConfigError(
            f'{cfg.filename}: holds values that cannot be written as a config ({type(error).__name__}); '
            f'expected plain ones: numbers, texts, lists, dicts'
        ) from error
    meta = {key: checkpoint.meta[key] for key in KEPT_META if _is_plain(checkpoint.meta.get(key))}
    meta['config'] = text  # as mmdet does; nothing else in a checkpoint of SOLOv2 tells its grids
    if not converted.changes:
        conversion.save_checkpoint(target, converted.state_dict, meta)
        return converted, None
    config = target.with_suffix('.py')
    text = f'# The config of mmdet that fits {target.name}, written by {tool(solo_names.COMMAND)}.\n{text}'
    check_writable(config)
    if config.exists() and config.read_bytes() != text.encode():
        raise UsageError(
            f'{config}: is there already with other content; move it away or choose another name'
        )
    with atomic_path(config) as temporary:  # the config gets its name after the checkpoint is written
        temporary.write_text(text, encoding='utf-8')
        conversion.save_checkpoint(target, converted.state_dict, meta)
    return converted, config


def _is_plain(value: object) -> bool:
    """Return whether a value is text, a whole number, or a list of texts that is not empty."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str | int)
