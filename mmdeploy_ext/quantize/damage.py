"""Effects of lower precision on a graph's values: one run with three values of every tensor.

A tensor is computed in float32, rounded only inside its unit, and with everything before it rounded. Stored
values are rounded and sums are float32, as `graph/passes/round_half.py` simulates it on a CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import glob
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import Index, bodies, captured, constants_to_initializers, opsets_of
from mmdeploy_ext.graph.io.modules import module_of
from mmdeploy_ext.graph.passes.fp16 import LARGEST_HALF, LOWER, PRODUCTS
from mmdeploy_ext.graph.run import Runner, open_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SMALLEST_NORMAL = 2.0**-14
"""Smallest float16 number with all digits."""
LARGEST_STEP_1 = 2048.0
"""From here on float16 steps are 2."""
LONG_SUM = 4096
"""Terms: so many equal values lose a digit in an engine's float16 sum."""
SUMS = ('ReduceSum', 'ReduceMean', 'ReduceL2', 'ReduceSumSquare', 'GlobalAveragePool', 'CumSum', 'Softmax')
COUNTER = re.compile(r'_\d+$')
"""Call number after a module's name."""
FACTS = 'mm2onnx.precision'
"""Domain of the function that summarises a tensor."""
_FACTS = """
<domain: "mm2onnx.precision", opset_import: ["" : {opset}]>
Facts (exact, own, passed) => (facts) {{
  flat = Constant<value_ints = [-1]>()
  zero = Constant<value = float {{0}}>()
  zeros = Constant<value_floats = [0.0]>()
  infinite = IsInf(exact)
  undefined = IsNaN(exact)
  special = Or(infinite, undefined)
  shaped = Where(special, zero, exact)
  plain = Reshape(shaped, flat)
  sizes = Abs(plain)
  some = Concat<axis = 0>(sizes, zeros)
  largest = ReduceMax<keepdims = 0>(some)
  mean = ReduceMean<keepdims = 0>(plain)
  centred = Sub(plain, mean)
  spread = ReduceL2<keepdims = 0>(centred)
  own_same = Equal(own, exact)
  own_errors = Sub(own, exact)
  own_off = Where(own_same, zero, own_errors)
  own_error = ReduceL2<keepdims = 0>(own_off)
  passed_same = Equal(passed, exact)
  passed_errors = Sub(passed, exact)
  passed_off = Where(passed_same, zero, passed_errors)
  passed_error = ReduceL2<keepdims = 0>(passed_off)
  a = Reshape(largest, flat)
  b = Reshape(spread, flat)
  c = Reshape(own_error, flat)
  d = Reshape(passed_error, flat)
  facts = Concat<axis = 0>(a, b, c, d)
}}
"""
_ROW = ('largest', 'spread', 'own_error', 'passed_error')


@dataclasses.dataclass
class Damage:
    """Errors a unit adds and passes on, over all samples.

    Attributes:
        own: largest error of a tensor with exact unit inputs, over the spread of its values.
        passed_on: the same with everything before it lower.
        largest: largest absolute value, `at` tensor and `sample`.
        faint: maximum of the tensor with the smallest values.
        terms: most values added by a node.
        products: share of the multiplications, of layers for INT8; 0 leaves it out of `weight`.
    """

    own: float = 0.0
    passed_on: float = 0.0
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

    def add(self, tensor: str, sample: int, facts: Mapping[str, float]) -> None:
        spread = max(facts['spread'], 1e-6 * facts['largest'], 1e-30)
        for name in ('own', 'passed_on'):
            error = facts[f'{name.removesuffix("_on")}_error'] / spread
            setattr(self, name, max(getattr(self, name), math.inf if math.isnan(error) else error))
        if facts['largest'] > self.largest:
            self.largest, self.at, self.sample = facts['largest'], tensor, sample
        if facts['largest'] > 0:
            self.faint = min(self.faint, facts['largest'])

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
    """A float32 graph with three values of each tensor.

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
        self.precision, self.fixed = precision, set(fixed)
        self.index = Index(model)
        self.floats = {
            name
            for name, kind in types.infer(model).items()
            if kind.tensor_type.elem_type == TensorProto.FLOAT
        }
        self.units: dict[str, Damage] = {}
        self._session = open_session(self._built(model), 'none', 0)

    def _built(self, model: onnx.ModelProto) -> onnx.ModelProto:
        names: dict[str, dict[str, str]] = dict(own={}, passed={})
        units, nodes = units_of(model), []
        unit_of_tensor: dict[str, str] = {}
        self.outputs: dict[str, tuple[str, str]] = {}
        taken = {name for node in model.graph.node for name in captured(node)}
        for node in model.graph.node:
            unit = units[node.output[0]][0]
            self.units.setdefault(unit, Damage())
            nodes.append(node)
            written = [name for name in node.output if name in self.floats]
            unit_of_tensor.update(dict.fromkeys(node.output, unit))
            stays = (
                node.output[0] in self.fixed or next(bodies(node), None) or taken.intersection(node.output)
            )
            if not written or stays or not self.floats.intersection(node.input):
                continue
            for path, of_path in names.items():
                near = {
                    name: of_path[name]
                    for name in node.input
                    if name in of_path and (path == 'passed' or unit_of_tensor.get(name) == unit)
                }
                copied, added, entering = self._lower(node, path, near)
                nodes += added
                of_path.update(copied)
            for name, rounded in entering.items():  # the unit's float32 inputs
                nodes.append(
                    helper.make_node('Facts', [name, rounded, rounded], [f'{rounded}~facts'], domain=FACTS)
                )
                self.outputs[f'{rounded}~facts'] = unit, name
            for name in written:
                facts = f'{name}~facts'
                sides = [name, names['own'][name], names['passed'][name]]
                nodes.append(helper.make_node('Facts', sides, [facts], domain=FACTS))
                self.outputs[facts] = unit, name
        graph = onnx.GraphProto(name='damage', input=model.graph.input, node=nodes)
        graph.initializer.extend(model.graph.initializer)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        result = onnx.ModelProto(ir_version=max(model.ir_version, 8), graph=graph)
        result.opset_import.extend([*model.opset_import, helper.make_opsetid(FACTS, 1)])
        facts = onnx.parser.parse_function(_FACTS.format(opset=opsets_of(model)['']))
        result.functions.extend([*model.functions, facts])
        return result

    def _lower(
        self, node: onnx.NodeProto, path: str, near: Mapping[str, str]
    ) -> tuple[dict[str, str], list[onnx.NodeProto], dict[str, str]]:
        """A copy of a node with rounded inputs and outputs; integers come from float32.

        Returns tensor -> its lower one, the nodes, and tensor -> rounded for the node's float32 inputs.
        """
        new, nodes, entering = copy.deepcopy(node), [], {}
        new.name = ''
        for place, name in enumerate(node.input):
            if name in near:
                new.input[place] = near[name]
            elif name in self.floats:
                new.input[place] = rounded = f'{name}~{node.output[0]}~{path}~{place}'
                nodes += self._round(name, rounded)
                if name not in self.index.constants:
                    entering[name] = rounded
        copied = {}
        for place, name in enumerate(node.output):
            new.output[place] = f'{name}~{path}' if name else ''
            if name in self.floats:
                copied[name] = f'{name}~{path}'
        nodes.append(new)
        for name, changed in copied.items():
            copied[name] = f'{changed}~rounded'
            nodes += self._round(changed, copied[name])
        return copied, nodes, entering

    def _round(self, name: str, rounded: str) -> Iterator[onnx.NodeProto]:
        yield helper.make_node('Cast', [name], [f'{rounded}~'], to=LOWER[self.precision])
        yield helper.make_node('Cast', [f'{rounded}~'], [rounded], to=TensorProto.FLOAT)

    def add(self, feeds: Mapping[str, np.ndarray], sample: int) -> None:
        """Run one sample."""
        names = [output.name for output in self._session.get_outputs()]
        taken = {value.name for value in self._session.get_inputs()}
        taken |= {value.name for value in self._session.get_overridable_initializers()}
        given = {name: array for name, array in feeds.items() if name in taken}
        results = dict(zip(names, self._session.run(names, given), strict=True))
        for output, (unit, tensor) in self.outputs.items():
            self.units[unit].add(tensor, sample, dict(zip(_ROW, map(float, results[output]), strict=True)))


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
