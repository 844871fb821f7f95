"""The settings of a model and its modules as plain values, to tell two models of one config apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.arrays import to_array

ONLY_TRAINING = ('training', 'train_cfg', 'init_cfg', 'pretrained')
"""Attributes of modules and entries of configs that inference does not read."""
HOOKS = ('_forward_pre_hooks', '_forward_hooks')
"""Attributes of modules that hold functions which change what a module takes and gives."""
MAX_NUMBERS = 1_000
"""Largest size of an array that is kept as numbers, which messages can show; a larger one is hashed."""


def module_settings(model: nn.Module) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name of a module -> its class as text, and its settings; the model itself has the name ''.

    Settings are attributes with plain values and arrays, lists and dicts of these, and the same of objects
    that modules hold, such as box coders and generators of priors. Weights, functions and other objects that
    can be called, attributes whose names begin with an underscore, and those of `ONLY_TRAINING` are none;
    `hidden_settings` has those of them that count.
    """
    return {
        name: (
            f'{type(module).__module__}.{type(module).__qualname__}',
            settings(vars(module), depth=2) | hidden_settings(module),
        )
        for name, module in model.named_modules()
    }


def hidden_settings(module: nn.Module) -> dict[str, Any]:
    """Return what else decides what a module computes, and is neither a plain attribute nor a weight.

    These are the names of its hooks, those of functions in the place of methods of its class, and the buffers
    that no checkpoint has. Keys are those of `HOOKS`, '<methods>' and '<buffers>', as no attribute is named.
    """
    attributes = vars(module)
    hooks = {name: [_name_of(hook) for hook in attributes[name].values()] for name in HOOKS}
    methods = {
        name: _name_of(value)
        for name, value in attributes.items()
        if callable(value) and callable(getattr(type(module), name, None))
    }
    buffers = {
        name: settings(buffer)
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    }
    return hooks | {'<methods>': methods, '<buffers>': buffers}


def _name_of(function: Any) -> str:
    """Return the qualified name of a function, or of the class of another object that is called."""
    return str(getattr(function, '__qualname__', type(function).__qualname__))


def settings(value: Any, depth: int = 1) -> Any:
    """Return a value as plain types that can be compared; `...` for what is no setting.

    Floating-point numbers, and all numbers of numpy, become texts; so do arrays of more than `MAX_NUMBERS`,
    with their hash. Other arrays that have axes, and tuples, become lists, dicts and objects dicts of their
    settings. An entry of a dict or object that is no setting (`...`, or by its name, see `is_setting`) is
    left out; an item of a list stays there as `...`.

    `depth` is one more than the number of objects, such as coders and generators of priors, that may be
    around a setting: with 1 an object is no setting itself. One that can be called is never one, and neither
    is a set.
    """
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, complex | np.complexfloating):
        return repr(complex(value))
    if isinstance(value, float | np.number | np.bool_):
        return repr(float(value))  # NaN equals NaN
    if isinstance(value, torch.Tensor) and value.is_meta:
        return f'{value.dtype}{list(value.shape)} without values'
    if isinstance(value, torch.Tensor | np.ndarray):
        array = to_array(value) if isinstance(value, torch.Tensor) else value
        if array.size <= MAX_NUMBERS:
            return settings(array.tolist())
        return f'{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}'
    if isinstance(value, Mapping):
        entries = {key: settings(entry, depth) for key, entry in value.items() if is_setting(key)}
        return {key: entry for key, entry in entries.items() if entry is not ...}
    if isinstance(value, list | tuple):
        return [settings(item, depth) for item in value]
    if isinstance(value, nn.Module) or depth <= 1 or not hasattr(value, '__dict__') or callable(value):
        return ...
    return settings(vars(value), depth - 1)


def is_setting(key: Any) -> bool:
    """Return whether an attribute or entry of this name may hold a setting that inference reads."""
    return not (str(key).startswith('_') or key in ONLY_TRAINING)
