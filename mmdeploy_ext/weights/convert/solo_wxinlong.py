"""Checkpoints of the original SOLO repository (WXinlong/SOLO) as those of mmdet 2.28.2."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import CheckpointError, ConfigError, UsageError
from mmdeploy_ext.core.files import atomic_path, check_writable
from mmdeploy_ext.weights.checkpoint import Checkpoint, listed, load_checkpoint, naming
from mmdeploy_ext.weights.convert import fitting, solo_names
from mmdeploy_ext.weights.convert.solo_config import check_config, check_head, fit_config

KEPT_META = ('CLASSES', 'epoch', 'iter')
OTHER_CONFIG = (
    ' (named as in mmdet). Give the config of the same backbone, tower width and depth with --config'
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint: mmdet's names in mmdet's order, with the tensors of the file.

    Attributes:
        cfg: the config that fits, changed where it had to be.
        changes: what was changed in it, one line each.
        own: the model's tensors, on the meta device.
    """

    state_dict: fitting.Tensors
    cfg: Any
    changes: list[str]
    own: fitting.Tensors


def convert(source: Checkpoint, cfg: Any) -> Converted:
    """Rename a state dict of the original repository and fit mmdet's config of the same head to it, in place.

    Raises:
        CheckpointError: not an original SOLO checkpoint, another head than the config's, or a key or shape
            that the config's model does not account for.
        ConfigError: the config is none of SOLO's.
    """
    check_config(cfg)
    with naming(source.path):
        return _convert(source, cfg)


def _convert(source: Checkpoint, cfg: Any) -> Converted:
    head = solo_names.original_head(source.state_dict)
    if not head:
        raise CheckpointError(_not_original(source.state_dict))
    names = solo_names.converted_names(source.state_dict)
    tensors = {name: source.state_dict[key] for key, name in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_head(cfg, head, shapes, source.meta.get('config'))
    changes = fit_config(cfg, shapes)
    own = fitting.model_tensors(cfg)
    for name, tensor in own.items():
        if name.endswith('num_batches_tracked') and name not in tensors:
            tensors[name] = torch.zeros(tensor.shape, dtype=torch.int64)  # older PyTorch did not count them
    return Converted(fitting.in_order(tensors, own, cfg.filename, OTHER_CONFIG), cfg, changes, own)


def _not_original(state_dict: Mapping[str, torch.Tensor]) -> str:
    if any(key.startswith('mask_head.') for key in state_dict):
        return "has mmdet's names (mask_head.*) already: use it as it is"
    return (
        f'is not a checkpoint of the original SOLO repository: expected bbox_head.solo_*, bbox_head.dsolo_* '
        f'keys, got {listed(list(state_dict))}'
    )


def convert_file(source: str | Path, target: str | Path, cfg: Any) -> tuple[Converted, Path | None]:
    """Convert a file and write it, and beside it the fitting config where the given one does not fit.

    The config gets the name of the target with `.py`; it is returned, too, where it was written. Refuses as
    `convert`, and weights that are not finite, or codes in their place, a path that cannot be written, and a
    config of other content where one has to go.
    """
    target = Path(target)
    check_config(cfg)
    fitting.check_output(source, target, cfg.filename)
    loaded = load_checkpoint(source)
    converted = convert(loaded, cfg)
    fitting.check_numbers(source, converted.state_dict, converted.own)
    text = _text(converted.cfg)
    meta = {key: loaded.meta[key] for key in KEPT_META if _is_plain(loaded.meta.get(key))}
    meta['config'] = text  # as mmdet keeps it; SOLOv2's grids are told nowhere else
    if not converted.changes:
        fitting.save_checkpoint(target, converted.state_dict, meta)
        return converted, None
    config = target.with_suffix('.py')
    text = f'# The config of mmdet that fits {target.name}, written by {tool(solo_names.COMMAND)}.\n{text}'
    _check_config_file(config, text)
    with atomic_path(config) as temporary:  # gets its name after the checkpoint has got its own
        temporary.write_text(text, encoding='utf-8')
        fitting.save_checkpoint(target, converted.state_dict, meta)
    return converted, config


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)
    )


def _text(cfg: Any) -> str:
    try:
        return cfg.pretty_text
    except Exception as error:  # of yapf, which cannot parse what is no literal
        raise ConfigError(
            f'{cfg.filename}: holds values that cannot be written as a config ({type(error).__name__}); '
            f'expected plain ones: numbers, texts, lists, dicts'
        ) from error


def _check_config_file(path: Path, text: str) -> None:
    check_writable(path)
    if path.exists() and path.read_bytes() != text.encode():
        raise UsageError(f'{path}: is there already with other content; move it away or choose another name')
