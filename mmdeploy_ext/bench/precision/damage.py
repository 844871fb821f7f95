"""Effects of lower precision on a graph's values: one run with two values of every tensor.

A tensor is computed in float32, and with rounding inside its unit alone; a unit is measured at its ends.
Stored values are rounded and sums are float32, as `graphs/passes/round_half.py` simulates it on a CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import glob
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import module_of
from mmdeploy_ext.graphs.io.index import bodies, captured, constants_to_initializers
from mmdeploy_ext.graphs.passes.fp16 import LARGEST_HALF, LOWER, PRODUCTS
from mmdeploy_ext.graphs.run import Runner, open_session

# Difference of two tensors over several samples: cosine and norms, summed over all pairs.


def severity(error: float) -> float:
    """Sort key, worst last: NaN counts as infinite."""
    return math.inf if math.isnan(error) else error


class Difference:
    """Cosine and errors of a tensor against a reference; without values 1 and 0.

    Attributes:
        largest_error: largest absolute difference.
        largest: largest absolute reference value.
    """

    def __init__(self) -> None:
        self._products = self._reference_squares = self._squares = self._error_squares = 0.0
        self.largest_error = self.largest = 0.0

    def add(self, reference: np.ndarray, values: np.ndarray) -> Difference:
        """Add a pair of equal size and return this; NaN and infinity spread to cosine and errors."""
        reference, values = reference.ravel(), values.ravel()
        if reference.size != values.size:
            raise ValueError(f'{values.size} values, expected {reference.size} as in the reference')
        if reference.size == 0:
            return self
        errors = values - reference
        self._products += _dot(reference, values)
        self._reference_squares += _dot(reference, reference)
        self._squares += _dot(values, values)
        self._error_squares += _dot(errors, errors)
        self.largest_error = float(np.maximum(self.largest_error, np.abs(errors).max()))
        self.largest = float(np.maximum(self.largest, np.abs(reference).max()))
        return self

    @property
    def cosine(self) -> float:
        """1 if both are 0, 0 if one is."""
        if self._reference_squares == self._squares == 0:
            return 1.0
        if 0 in (self._reference_squares, self._squares):
            return 0.0
        return float(np.clip(self._products / np.sqrt(self._reference_squares * self._squares), -1, 1))

    @property
    def error(self) -> float:
        """Norm of the difference over the reference's norm; 0 or infinity for a reference of zeros."""
        if self._reference_squares == 0:
            return 0.0 if self._error_squares == 0 else float('inf')
        return float(np.sqrt(self._error_squares / self._reference_squares))

    def to_json(self) -> dict[str, float]:
        return dict(
            cosine=self.cosine, error=self.error, largest_error=self.largest_error, largest=self.largest
        )


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.einsum('i,i->', first, second, dtype=np.float64))


SMALLEST_NORMAL = 2.0**-14
"""Smallest float16 number with all digits."""
LARGEST_STEP_1 = 2048.0
"""From here on float16 steps are 2."""
LONG_SUM = 4096
"""Terms: so many equal values lose a digit in an engine's float16 sum."""
SUMS = ('ReduceSum', 'ReduceMean', 'ReduceL2', 'ReduceSumSquare', 'GlobalAveragePool', 'CumSum', 'Softmax')
COUNTER = re.compile(r'_\d+$')
"""Call number after a module's name."""
ERROR = (
    ('IsInf', 'exact', 'infinite'),
    ('Where', 'infinite ~zero exact', 'finite'),
    ('ReduceMean', 'finite', 'mean'),
    ('Sub', 'finite mean', 'centred'),
    ('ReduceL2', 'centred', 'spread'),
    ('ReduceL2', 'finite', 'norm'),
    ('Equal', 'lower exact', 'same'),
    ('Sub', 'lower exact', 'errors'),
    ('Where', 'same ~zero errors', 'off'),
    ('ReduceL2', 'off', 'difference'),
)
"""Steps to the error of a tensor, spread and norm of its values: operator, inputs, output."""
MEASURED = ('difference', 'spread', 'norm')


@dataclasses.dataclass
class Damage:
    """The error a unit adds, and the values in it, over some samples.

    Attributes:
        own: largest error of an output with exact unit inputs, over the spread of its values.
        largest: largest absolute value, `at` tensor and `sample`.
        faint: maximum of the tensor with the smallest values.
        terms: most values added by a node.
        products: share of the multiplications, of layers for INT8; 0 leaves it out of `weight`.
    """

    own: float = 0.0
    largest: float = 0.0
    at: str = ''
    sample: int = 0
    faint: float = math.inf
    terms: int = 0
    products: float = 0.0

    @property
    def weight(self) -> float:
        """Damage that the higher precision removes, per multiplication there: errors add up as squares."""
        return self.own**2 / (self.products + 1e-4) if self.products else self.own**2

    def see(self, tensor: str, sample: int, largest: float) -> None:
        if largest > self.largest:
            self.largest, self.at, self.sample = largest, tensor, sample
        if largest > 0:
            self.faint = min(self.faint, largest)

    def reasons(self, precision: str) -> list[str]:
        """Why a unit may need float32, surest first."""
        found = []
        if precision == 'fp16' and self.largest > LARGEST_HALF:
            added = f', a sum over {self.terms:,} values' if self.terms >= LONG_SUM else ''
            found.append(f'overflow: {self.largest:.2g} at {self.at} (sample {self.sample + 1}){added}')
        elif self.terms >= LONG_SUM and self.own > 2**-9:
            found.append(f'sum over {self.terms:,} values')
        if precision == 'fp16' and self.faint < SMALLEST_NORMAL:
            found.append(f'values of at most {self.faint:.2g}: below 6.1e-05 float16 loses digits')
        if LARGEST_STEP_1 < self.largest <= LARGEST_HALF:
            step = 2.0 ** (math.floor(math.log2(self.largest)) - (10 if precision == 'fp16' else 7))
            found.append(f'values up to {self.largest:.4g} have steps of {step:g}')
        if not found and math.isinf(self.own):
            return ['returns values that are not finite when its inputs are rounded']
        return found or [f'adds an error of {self.own:.2g}, relative to the spread of its values']


def units_of(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """First output of each node -> its unit and the pattern of its nodes.

    A unit is a module (exporters number later calls: `gn`, `gn_1`), or a node without one.
    """
    modules = {node.output[0]: module_of(node)[0] or node.name or node.output[0] for node in model.graph.node}
    names = {*modules.values()}
    return {
        name: (plain if (plain := COUNTER.sub('', module)) in names else module, glob.escape(module))
        for name, module in modules.items()
    }


def counted(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """First output of each product and sum -> terms per value, and multiplications (0 for a sum)."""
    model = copy.deepcopy(model)
    graph = model.graph
    summing = [node for node in graph.node if node.op_type in (*PRODUCTS, *SUMS)]
    ends = [[name for name in (*node.input[:2], node.output[0]) if name] for node in summing]
    names = dict.fromkeys(name for of_node in ends for name in of_node)
    graph.node.extend(helper.make_node('Shape', [name], [f'{name}~shape']) for name in names)
    sizes = Runner(model, [f'{name}~shape' for name in names]).run(feeds) if names else {}
    found = {}
    for node, of_node in zip(summing, ends, strict=True):
        *inputs, output = (sizes[f'{name}~shape'].tolist() for name in of_node)
        terms = _terms(node, inputs, output)
        found[node.output[0]] = terms, math.prod(output) * terms if node.op_type in PRODUCTS else 0
    return found


class Measured:
    """A float32 graph with two values of each tensor.

    Attributes:
        units: unit -> `Damage`, in the order of the graph.
    """

    def __init__(self, model: onnx.ModelProto, precision: str, fixed: Iterable[str]) -> None:
        """Build the graph.

        Args:
            model: float32.
            precision: 'fp16' or 'bf16'.
            fixed: first outputs of nodes that always stay float32.
        """
        model = copy.deepcopy(model)
        constants_to_initializers(model.graph)
        self.precision, self.model, self.fixed = precision, model, set(fixed)
        self.floats = {
            name
            for name, kind in types.infer(model).items()
            if kind.tensor_type.elem_type == TensorProto.FLOAT
        }
        self.units: dict[str, Damage] = {}
        self.tensors: dict[str, dict[str, None]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._rounded: set[str] = set()
        self._ends: dict[str, str] = {}
        self._session = open_session(self._built(), 'none', 0)

    def _built(self) -> onnx.ModelProto:
        model = self.model
        variable = self.floats - {tensor.name for tensor in model.graph.initializer}
        units = {name: unit for name, (unit, _) in units_of(model).items()}
        unit_of = {name: units[node.output[0]] for node in model.graph.node for name in node.output}
        inner = {name for node in model.graph.node for name in captured(node)}
        leaving = {value.name for value in model.graph.output}
        for node in model.graph.node:
            leaving |= {name for name in node.input if unit_of.get(name) != units[node.output[0]]}
        lower: dict[str, str] = {}
        for node in model.graph.node:
            unit = units[node.output[0]]
            self.units.setdefault(unit, Damage())
            tensors = self.tensors.setdefault(unit, {})
            self._nodes.append(node)
            written = [name for name in node.output if name in self.floats]
            stays = (
                node.output[0] in self.fixed or next(bodies(node), None) or inner.intersection(node.output)
            )
            if not written or stays or not self.floats.intersection(node.input):
                continue
            tensors |= dict.fromkeys(name for name in node.input if name in variable)
            tensors |= dict.fromkeys(written)
            new = copy.deepcopy(node)
            new.name = ''
            for place, name in enumerate(node.input):
                if name in lower and unit_of[name] == unit:
                    new.input[place] = lower[name]
                elif name in self.floats:  # a float32 input of the unit
                    new.input[place] = f'{name}~{unit}'
                    self._round(name, f'{name}~{unit}')
            new.output[:] = [name and f'{name}~exact' for name in node.output]
            self._nodes.append(new)
            for name in written:
                lower[name] = f'{name}~lower'
                self._round(f'{name}~exact', lower[name])
                if name in leaving:
                    self._compare(unit, name, lower[name])
        graph = onnx.GraphProto(name='damage', input=model.graph.input, node=self._nodes)
        graph.initializer.extend(model.graph.initializer)
        graph.initializer.append(numpy_helper.from_array(np.float32(0), '~zero'))
        graph.output.extend(
            onnx.ValueInfoProto(name=f'{name}~{kind}') for name in self._ends for kind in MEASURED
        )
        result = onnx.ModelProto(ir_version=max(model.ir_version, 8), graph=graph)
        result.opset_import.extend(model.opset_import)
        result.functions.extend(model.functions)
        return result

    def _round(self, name: str, rounded: str) -> None:
        """Add the nodes that round a tensor, unless they are there."""
        if rounded in self._rounded:
            return
        self._rounded.add(rounded)
        casts = ([name, f'{rounded}~', LOWER[self.precision]], [f'{rounded}~', rounded, TensorProto.FLOAT])
        self._nodes += [helper.make_node('Cast', [source], [target], to=to) for source, target, to in casts]

    def _compare(self, unit: str, name: str, lower: str) -> None:
        self._ends[name] = unit
        names = {'exact': name, 'lower': lower, '~zero': '~zero'}
        for operator, inputs, output in ERROR:
            names[output] = f'{name}~{output}'
            options = dict(keepdims=0) if operator.startswith('Reduce') else {}
            inputs = [names[one] for one in inputs.split()]
            self._nodes.append(helper.make_node(operator, inputs, [names[output]], **options))

    def add(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Measure the errors of one sample."""
        taken = {value.name for value in self._session.get_inputs()}
        taken |= {value.name for value in self._session.get_overridable_initializers()}
        given = {name: array for name, array in feeds.items() if name in taken}
        results = np.float64(self._session.run(None, given)).reshape(-1, len(MEASURED))
        for unit, (difference, spread, norm) in zip(self._ends.values(), results, strict=True):
            error = difference / max(spread, 1e-6 * norm, 1e-30)
            self.units[unit].own = max(self.units[unit].own, math.inf if math.isnan(error) else error)

    def see_values(self, units: Sequence[str], samples: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Note the sizes of values in units."""
        names = dict.fromkeys(name for unit in units for name in self.tensors.get(unit, ()))
        runner = Runner(self.model, list(names)) if names else None
        for sample, feeds in enumerate(samples if runner else ()):
            arrays = runner.run(feeds)
            for unit in units:
                for name in self.tensors.get(unit, ()):
                    finite = arrays[name][np.isfinite(arrays[name])]
                    self.units[unit].see(name, sample, float(np.abs(finite).max(initial=0)))


def _terms(node: onnx.NodeProto, inputs: Sequence[Any], output: Sequence[int]) -> int:
    """Number of values that a node adds per output value."""
    first = inputs[0]
    if node.op_type == 'Conv':
        return math.prod(inputs[1][1:])
    if node.op_type == 'ConvTranspose':  # on average: a stride leaves some out
        return math.prod(first) * math.prod(inputs[1][1:]) // max(math.prod(output), 1)
    if node.op_type == 'MatMul':
        return first[-1]
    if node.op_type == 'Gemm':
        return math.prod(first) // max(output[0], 1)
    if node.op_type in ('CumSum', 'Softmax'):
        return max(first, default=1)
    return math.prod(first) // max(math.prod(output), 1)
