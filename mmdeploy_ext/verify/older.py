"""Files of older graph rules: which of their constants are today's up to the rounding of another machine.

Rules 1 folded batch normalisation in float32 with kernels whose last bit depends on the make of CPU. Measured
against the float64 fold of today: weights at most 2 units in the last place; biases up to 1,668 of their own
value's, because they are small differences of large numbers, so these are judged by what was subtracted.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from mmdeploy_ext.graph.constants import tensor_values
from mmdeploy_ext.graph.index import all_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

ULPS = 4
"""Units in the last place that a constant of an older file may differ by: of its own value; a folded bias: of
|beta| + |mean * scale|."""


@dataclasses.dataclass
class Nearness:
    """How the constants of an older file differ from today's.

    Attributes:
        count: constants that differ within the bars.
        ulps: the most that a value differs by, in units of what it is judged by.
    """

    count: int = 0
    ulps: float = 0.0

    @property
    def text(self) -> str:
        """What the verdict says."""
        if not self.count:
            return ''
        most = f'{self.ulps:.2g} at most'
        return f'{self.count} constants differ by rounding ({most}, allowed {ULPS} units in the last place)'


def brought_near(
    model: onnx.ModelProto, fresh: onnx.ModelProto, magnitudes: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, Nearness]:
    """Return a copy of a file in which constants that differ by rounding alone are those of a fresh export.

    Args:
        model: the file.
        fresh: an export by the rules of today.
        magnitudes: `content` of a folded bias -> (C,) what it is judged by, |beta| + |mean * scale|.

    Returns:
        The copy, and how near they are.
    """
    pool: dict[tuple[str, tuple[int, ...]], dict[str, np.ndarray]] = collections.defaultdict(dict)
    for tensor in all_tensors(fresh):
        array = tensor_values(tensor)
        if array.dtype.kind == 'f':
            pool[str(array.dtype), array.shape][content(array)] = array
    result, found = onnx.ModelProto(), Nearness()
    result.CopyFrom(model)
    for tensor in all_tensors(result):
        array = tensor_values(tensor)
        candidates = pool.get((str(array.dtype), array.shape), {})
        if array.dtype.kind != 'f' or not array.size or content(array) in candidates:
            continue
        near = _nearest(array, candidates, magnitudes)
        if near is not None:
            tensor.CopyFrom(numpy_helper.from_array(near[0], tensor.name))
            found.count, found.ulps = found.count + 1, max(found.ulps, near[1])
    return result, found


def _nearest(
    array: np.ndarray, candidates: Mapping[str, np.ndarray], magnitudes: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, float] | None:
    """Return the candidate that an array is up to rounding, and how far it is away; None without one."""
    first = array.reshape(-1)[:1].astype(np.float64)
    for key, other in candidates.items():
        judged = np.asarray(magnitudes.get(key, np.abs(other)), np.float64).reshape(other.shape)
        unit = np.spacing(judged.astype(other.dtype)).astype(np.float64)
        if abs(first - other.reshape(-1)[:1]) > ULPS * unit.reshape(-1)[:1]:
            continue  # a quick look: most candidates are other layers
        with np.errstate(invalid='ignore'):
            distance = np.abs(array.astype(np.float64) - other) / unit
        distance[(array == other) | (np.isnan(array) & np.isnan(other))] = 0
        worst = float(distance.max())
        if worst <= ULPS:
            return other, worst
    return None


def bias_magnitudes(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return `content` of every folded bias of a model -> (C,) |beta| + |mean * scale|."""
    from mmdeploy_ext.fold import folded_bias_magnitudes, fuse

    state = fuse(model).state_dict()
    found = folded_bias_magnitudes(model)
    return {content(state[name].detach().cpu().numpy()): sizes for name, sizes in found.items()}


def content(array: np.ndarray) -> str:
    """Return a key of the values of an array, whatever its shape."""
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
