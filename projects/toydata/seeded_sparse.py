"""Weights of sparse backbones by rule, from names alone: the same numbers on every machine.

Source: golden FILL.md (the rules are ours; no weights of any model are needed).
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch

COUNTER = 'num_batches_tracked'


def weights(shapes: Mapping[str, tuple[int, ...]], prefix: str = '') -> dict[str, np.ndarray]:
    """Return a filled state dict.

    Args:
        shapes: key without prefix -> shape; kernels in spconv 1.x layout (k0, k1, k2, I, O).
        prefix: put before every key to draw its numbers, e.g. 'encoders.lidar.backbone.'.

    Returns:
        Key without prefix -> float32 array of that shape (int64 for counters).
    """
    return {key: _weight(prefix + key, tuple(shape)) for key, shape in shapes.items()}


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith(COUNTER):
        return np.zeros(shape, np.int64)
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) == 5:
        drawn = drawn / np.sqrt(np.prod(shape[:4])) * np.sqrt(2)
    elif key.endswith('.running_var'):
        drawn = 1 + 0.1 * np.abs(drawn)
    elif key.endswith('.weight'):
        drawn = 1 + 0.05 * drawn
    else:
        drawn = 0.02 * drawn
    return drawn.astype(np.float32)


def fill_module(module: torch.nn.Module, prefix: str = '') -> dict[str, np.ndarray]:
    """Fill a module on spconv 2, whose kernels are (O, k0, k1, k2, I), in place.

    Returns:
        The filled state dict in spconv 1.x layout, as `weights` gives it.
    """
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
