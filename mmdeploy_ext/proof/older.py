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

from mmdeploy_ext.graph.io.constants import tensor_values
from mmdeploy_ext.graph.io.index import all_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

ULPS = 4
"""Units in the last place that a constant of an older file may differ by. Of a weight: of each value; of a
folded bias: of |beta| + |mean * scale|; of what is computed from parameters: of its largest value. (Learned
queries of StreamPETR go through matrix products and normalisations: measured 3.5.)"""


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What the rounding of a constant is judged by.

    Attributes:
        biases: `content` of a folded bias -> (C,) |beta| + |mean * scale|; likewise of sums of branches.
        weights: `content` of every tensor of the folded model, in the forms in which exporters write them.
    """

    biases: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    weights: frozenset[str] = frozenset()

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return what each value of a constant of a fresh export is judged by, in its shape."""
        key, sizes = content(array), np.abs(array.astype(np.float64))
        if key in self.biases:
            return np.asarray(self.biases[key], np.float64).reshape(array.shape)
        return sizes if key in self.weights else np.full_like(sizes, sizes[np.isfinite(sizes)].max(initial=0))


def with_rounding_undone(
    model: onnx.ModelProto, fresh: onnx.ModelProto, rounding: Rounding
) -> tuple[onnx.ModelProto, str]:
    """Return a copy of a file in which constants that differ by rounding alone are a fresh export's.

    What the verdict says of those that differed is returned, too; '' for none.
    """
    pool: dict[tuple[str, tuple[int, ...]], dict[str, np.ndarray]] = collections.defaultdict(dict)
    for tensor in all_tensors(fresh):
        array = tensor_values(tensor)
        if array.dtype.kind == 'f':
            pool[str(array.dtype), array.shape][content(array)] = array
    result, found = onnx.ModelProto(), []
    result.CopyFrom(model)
    for tensor in all_tensors(result):
        array = tensor_values(tensor)
        candidates = pool.get((str(array.dtype), array.shape), {})
        if array.dtype.kind != 'f' or not array.size or content(array) in candidates:
            continue
        near = _nearest(array, candidates.values(), rounding)
        if near is not None:
            tensor.CopyFrom(numpy_helper.from_array(near[0], tensor.name))
            found.append(near[1])
    if not found:
        return result, ''
    most = f'{max(found):.2g} at most, allowed {ULPS} units in the last place'
    return result, f'{len(found)} constants differ by rounding ({most})'


def _nearest(
    array: np.ndarray, candidates: Iterable[np.ndarray], rounding: Rounding
) -> tuple[np.ndarray, float] | None:
    """Return the candidate that an array is up to rounding, and how far it is away; None without one."""
    first = array.reshape(-1)[:1].astype(np.float64)
    for other in candidates:
        unit = np.spacing(rounding.of(other).astype(other.dtype)).astype(np.float64)
        if abs(first - other.reshape(-1)[:1]) > ULPS * unit.reshape(-1)[:1]:
            continue  # a quick look: most candidates are other layers
        with np.errstate(invalid='ignore'):
            distance = np.abs(array.astype(np.float64) - other) / unit
        distance[(array == other) | (np.isnan(array) & np.isnan(other))] = 0
        worst = float(distance.max())
        if worst <= ULPS:
            return other, worst
    return None


def rounding_of(model: torch.nn.Module) -> Rounding:
    """Return what the constants of a model's older files are judged by."""
    from mmdeploy_ext.exporting.fold import folded_bias_magnitudes, fuse

    state = {name: value.detach().cpu().numpy() for name, value in fuse(model).state_dict().items()}
    biases = {content(state[name]): sizes for name, sizes in folded_bias_magnitudes(model).items()}
    forms = (form for name, array in state.items() if array.dtype.kind == 'f' for form in _forms(name, array))
    return Rounding(biases, frozenset(map(content, forms)))


def _forms(name: str, array: np.ndarray) -> list[np.ndarray]:
    """Return a weight as it is stored and transposed, and the parts of packed projections likewise."""
    packed = name.endswith(('in_proj_weight', 'in_proj_bias'))
    parts = [array, *(np.split(array, 3) if packed else ())]
    return [*parts, *(part.T for part in parts if part.ndim == 2)]


def content(array: np.ndarray) -> str:
    """Return a key of the values of an array, whatever its shape."""
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
