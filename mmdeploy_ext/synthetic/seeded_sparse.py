"""Weights of sparse backbones by rule, from names alone: the same numbers on every machine.

Source: golden FILL.md (the rules are ours; no weights of any model are needed).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

COUNTER = 'num_batches_tracked'


def rng(name: str) -> np.random.Generator:
    """Return the generator of one name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def by_names(
    shapes: Mapping[str, Sequence[int]], rule: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict[str, torch.Tensor]:
    """Return a state dict of what a rule makes of names and shapes, float32; counters are zero, int64."""
    return {
        key: torch.zeros(tuple(shape), dtype=torch.int64)
        if key.endswith(COUNTER)
        else torch.tensor(rule(key, tuple(shape)), dtype=torch.float32).reshape(tuple(shape))
        for key, shape in shapes.items()
    }


def weights(shapes: Mapping[str, tuple[int, ...]], prefix: str = '') -> dict[str, np.ndarray]:
    """Return a filled state dict, float32 and int64 for counters, of key without prefix -> shape.

    Kernels are in spconv 1.x layout (k0, k1, k2, I, O); the prefix, e.g. 'encoders.lidar.backbone.', is put
    before every key to draw its numbers.
    """
    filled = by_names(shapes, lambda key, shape: _values(prefix + key, shape))
    return {key: value.numpy() for key, value in filled.items()}


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = rng(key).standard_normal(shape)
    if len(shape) == 5:
        return drawn / np.sqrt(np.prod(shape[:4])) * np.sqrt(2)
    if key.endswith('.running_var'):
        return 1 + 0.1 * np.abs(drawn)
    return 1 + 0.05 * drawn if key.endswith('.weight') else 0.02 * drawn


def fill_module(module: torch.nn.Module, prefix: str = '') -> dict[str, np.ndarray]:
    """Fill a module on spconv 2, whose kernels are (O, k0, k1, k2, I), in place; return its `weights`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    old = {key: (*shape[1:], shape[0]) if len(shape) == 5 else shape for key, shape in shapes.items()}
    state = weights(old, prefix)
    # not load_state_dict: spconv's own hook guesses at layouts
    own, modules = module.state_dict(keep_vars=True), dict(module.named_modules())
    with torch.no_grad():
        for key, array in state.items():
            if array.ndim == 5 and modules[key.rpartition('.')[0]].conv1x1:
                array = array.reshape(own[key].shape)  # spconv reads its memory as (I, O)
            elif array.ndim == 5:
                array = np.ascontiguousarray(array.transpose(4, 0, 1, 2, 3))
            own[key].copy_(torch.from_numpy(array))
    return state
