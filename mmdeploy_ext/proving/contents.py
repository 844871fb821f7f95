"""What distinguishes nested values with tensors: the key of results that were computed from them."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def content_of(value: Any) -> Iterator[Any]:
    """Yield what distinguishes arguments: hashes of tensors and arrays, `repr` of everything else."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        yield array.shape, hashlib.blake2b(array.tobytes()).digest()
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from content_of(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from content_of(entry)
    else:
        yield repr(value)
