"""Steps of every converter: the model's tensors, comparison of keys, the written file."""

import copy
import functools
import importlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.base.errors import CheckpointError, ConfigError, UsageError, root_cause
from mmdeploy_ext.base.files import atomic_path, check_outputs, check_writable
from mmdeploy_ext.upstream.compat.import_hook import patched
from mmdeploy_ext.upstream.weights.checkpoint import check_finite, check_types, misfits, undrawn_weights

Tensors = dict[str, torch.Tensor]
CHECKPOINT_KEYS = 'pretrained', 'teacher_ckpt'
"""Keys of a model whose files mmdet loads, or downloads, while it builds."""
FOREIGN_SUFFIXES = ('.py', '.json', '.onnx', '.safetensors')
"""Suffixes that a checkpoint must not have."""


def model_tensors(cfg: Any) -> Tensors:
    """State dict of a config's model on PyTorch's meta device, without values."""
    if not isinstance(cfg.get('model'), dict):
        raise ConfigError(f'{cfg.filename}: model={cfg.get("model")!r}, expected a dict with `type`')
    model = copy.deepcopy(cfg.model)
    library = 'mmdet3d' if any(key.endswith('voxel_layer') for key in model) else 'mmdet'
    model.update({key: None for key in CHECKPOINT_KEYS if key in model})
    rates_on_cpu = functools.partial(torch.linspace, device='cpu')  # backbones read them by item()
    try:
        with torch.device('meta'), undrawn_weights(), patched(torch, linspace=rates_on_cpu):
            built = importlib.import_module(f'{library}.models').build_detector(model)
    except Exception as error:
        raise ConfigError(f'{cfg.filename}: the model cannot be built ({error})') from error
    return built.state_dict()


def in_model_order(tensors: Tensors, model: Tensors, config: str, advice: str) -> Tensors:
    """Converted tensors in the model's order.

    CheckpointError: names or shapes differ; the message ends with `advice`.
    """
    missing = [key for key in model if key not in tensors]
    unexpected = [key for key in tensors if key not in model]
    if problems := misfits(model, tensors, missing, unexpected):
        raise CheckpointError(f'does not fit the model of {config}: {problems}{advice}')
    return {key: tensors[key] for key in model}


def check_numbers(source: str | Path, tensors: Mapping[str, torch.Tensor], model: Tensors) -> None:
    """Raise CheckpointError for weights that are not finite, or integers in place of floats."""
    check_types(source, tensors, model)
    check_finite(source, tensors)


def check_output(source: str | Path, target: str | Path, config: str | Path | None = None) -> None:
    """Raise UsageError for a target that is an input, of `FOREIGN_SUFFIXES`, or not writable."""
    target = Path(target)
    if target.suffix in FOREIGN_SUFFIXES:
        raise UsageError(f'{target}: is not the name of a checkpoint: {target.suffix}; expected e.g. .pth')
    inputs = {'the original checkpoint': [source], 'the config': [config] if config else []}
    check_outputs({'': [target]}, inputs)
    check_writable(target)


def save_checkpoint(
    target: str | Path, state_dict: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
) -> None:
    """Write `{'meta': ..., 'state_dict': ...}` atomically, with the versions of modules if there are any."""
    versions = getattr(state_dict, '_metadata', None)
    weights: dict[str, torch.Tensor] = dict(state_dict) if versions is None else OrderedDict(state_dict)
    if versions is not None:  # without them mmdet's heads take `cls` for an older name
        weights._metadata = versions  # type: ignore[attr-defined]
    with atomic_path(target) as temporary, open(temporary, 'wb') as stream:
        try:
            torch.save({'meta': dict(meta), 'state_dict': weights}, stream)
        except RuntimeError as error:  # torch raises it when a write fails
            cause = root_cause(error)
            raise cause if isinstance(cause, OSError) else OSError(f'torch: {error}') from error


def config_text(cfg: Any) -> str:
    """Text from which mmcv reads the same config; ConfigError: a value without a literal."""
    from mmcv import Config

    try:
        text = cfg.pretty_text
        if Config.fromstring(text, '.py')._cfg_dict != cfg._cfg_dict:
            raise ValueError('its text has other values')
    except Exception as error:  # of yapf, for values that are no Python
        raise ConfigError(
            f'{cfg.filename}: has values that cannot be written as a config ({type(error).__name__}); '
            'expected plain values: finite numbers, texts, lists, dicts'
        ) from error
    return text
