"""Converts checkpoints and configs of mmdet 3 (mmengine) to mmdet 2.28."""

import dataclasses
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.commands import command, tool
from mmdeploy_ext.base.errors import check_distinct, named
from mmdeploy_ext.base.files import atomic_path, check_outputs, check_writable
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint, load_checkpoint
from mmdeploy_ext.upstream.weights.convert import conversion
from mmdeploy_ext.upstream.weights.convert.mmdet3_config import read_mmdet3_config, to_mmdet2_config
from mmdeploy_ext.upstream.weights.convert.mmdet3_names import COMMAND, to_mmdet2_names

KEPT_META = ('epoch', 'iter', 'seed', 'mmengine_version')
"""Keys of `meta` that are kept."""
OTHER_CONFIG = (
    f'. Pass the config of the same model with --config; `{command(COMMAND)} CONFIG3.py OUT.py` writes it '
    "from mmdet 3's"
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        state_dict: mmdet 2's name -> tensor, in the model's order.
        renamed: number of renamed tensors.
        left_out: tensors in the file without use, see `UNUSED_PREFIXES`.
        model_tensors: of the config's model, on the meta device.
    """

    state_dict: conversion.Tensors
    renamed: int
    left_out: list[str]
    model_tensors: conversion.Tensors


def convert(source: Checkpoint, cfg: Any) -> Converted:
    """Rename the tensors of an mmdet 3 checkpoint for a model of mmdet 2; values stay.

    CheckpointError: keys or shapes differ.
    """
    model_tensors = conversion.model_tensors(cfg)
    detector = cfg.model.get('type')
    names = to_mmdet2_names(source.state_dict, model_tensors, detector)
    with named(source.path):
        check_distinct(names.items())
        tensors = {name: source.state_dict[key] for key, name in names.items()}
        state_dict = conversion.in_model_order(tensors, model_tensors, cfg.filename, OTHER_CONFIG)
    renamed = sum(key != name for key, name in names.items())
    left_out = [key for key in source.state_dict if key not in names]
    return Converted(state_dict, renamed, left_out, model_tensors)


def convert_file(source: str | Path, target: str | Path, cfg: Any) -> Converted:
    """Convert a checkpoint for a config of mmdet 2.28 and write it atomically."""
    conversion.check_output(source, target, cfg.filename)
    checkpoint = load_checkpoint(source)
    converted = convert(checkpoint, cfg)
    conversion.check_numbers(source, converted.state_dict, converted.model_tensors)
    meta = {key: checkpoint.meta[key] for key in KEPT_META if isinstance(checkpoint.meta.get(key), str | int)}
    classes = checkpoint.meta.get('CLASSES')
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        meta['CLASSES'] = tuple(classes)
    conversion.save_checkpoint(target, converted.state_dict, meta)
    return converted


def translate_file(source: str | Path, target: str | Path) -> None:
    """Translate a config of mmdet 3, or of an mmengine checkpoint, to mmdet 2.28, and write it.

    ConfigError: mmdet 2.28 lacks a part or key.
    """
    check_outputs({'': [target]}, {'the config': [source]})
    check_writable(target)
    cfg = to_mmdet2_config(read_mmdet3_config(source))
    text = conversion.config_text(cfg)
    text = f'# {source} of mmdet 3 as a config of mmdet 2.28, by {tool(COMMAND)}\n{text}'
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding='utf-8')
