"""INT8 files of other tools: without their roundings they are the float graph, layer by layer."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper, numpy_helper

from mmdeploy_ext.exporting.int8.dense import with_initializers
from mmdeploy_ext.graphs import signature
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import module_path
from mmdeploy_ext.graphs.io.index import Index, claim_name, refill
from mmdeploy_ext.graphs.passes.rename import all_tensor_names, rename_tensors
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.spec.results import GraphDifference

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import onnx

REMOVED = 'Relu', 'Clip'
"""Operators that a quantiser may leave out where the codes end at the same values."""
MOVES = 'MaxPool', 'Reshape', 'Transpose', 'Flatten', 'Squeeze', 'Unsqueeze', 'Slice', 'Gather'
"""Operators that give the same codes of codes as of values."""
ON_CODES = dict(QLinearConv='Conv', QLinearMatMul='MatMul')
"""Operator on codes -> operator on floats, with the Q/DQ pairs around it."""
QUANT = '_quant'
"""End of names of nodes on codes by ONNX Runtime."""
ORT = 'onnx.quantize'
"""Producer of ONNX Runtime's quantiser, which corrects no biases."""
HALF, LAST = 0.501, 1.01
"""Largest distance of a weight from its code, in steps, and from the first or last code."""
FEWEST_CODES = 60
"""Smallest of the largest codes of a weight, from the zero point; 7-bit weights reach 63."""
CUT = np.array([0, 1e-5, 1e-4, 1e-3])
"""Shares of a tensor's values that calibrators leave out, half at each end: none, and three percentiles."""
LARGEST = 2000
"""One of so many values is read at each end of a tensor: half of the largest of `CUT`."""
NARROW, WIDE = 0.55, 2.5
"""Range of an activation's codes over its range on a proof's inputs, at least and at most, with the share of
`CUT` that fits the file best. Right files of the toys reach 0.59 (calibrated on one image) and 2.3."""
FEWEST_VALUES = 64
"""Values of a tensor in a proof below which its range says nothing."""
CORRECTION = 0.25
"""Largest change of a bias over the root mean square of its channel; NNCF's reach 0.13 in the toys."""
RTOL = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Rounding:
    """(codes - zero) * scale, scale and zero per index of `axis` or for all values."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int

    def equals(self, other: Rounding) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)

    def steps(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero in float64; they broadcast to arrays of a rank."""
        shape = [1] * rank
        if self.scale.size > 1:
            shape[self.axis] = -1
        return self.scale.reshape(shape).astype(float), self.zero.reshape(shape).astype(float)

    def codes(self, values: np.ndarray) -> np.ndarray:
        scale, zero = self.steps(values.ndim)
        limits = np.iinfo(self.zero.dtype)
        return np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(self.zero.dtype)

    def values(self, codes: np.ndarray) -> np.ndarray:
        scale, zero = self.steps(codes.ndim)
        return np.float32((codes - zero) * scale)

    @property
    def ends(self) -> tuple[float, float]:
        """Values of the first and last code."""
        limits = np.iinfo(self.zero.dtype)
        low, high = self.values(np.array([limits.min, limits.max]))
        return float(low), float(high)


class UndoneFile:
    """A file without its roundings.

    Attributes:
        model: the float graph; weights and biases are those of the fresh export where both have some.
        weights: dequantised constant of the file -> its codes and their rounding.
        rounded: node that rounds an activation -> tensor of `model` and the rounding.
        corrections: layer -> what a tool added to its bias in float.
        differences: from the fresh export.
    """

    def __init__(self, model: onnx.ModelProto, fresh: onnx.ModelProto) -> None:
        self.model = _with_pairs(with_initializers(model))
        self.weights: dict[str, tuple[np.ndarray, Rounding]] = {}
        self.rounded: dict[str, tuple[str, Rounding]] = {}
        self.corrections: dict[str, np.ndarray] = {}
        self.differences: list[GraphDifference] = []
        index = Index(_without_idle_casts(fresh, {node.name for node in model.graph.node}))
        self._restore(index, self._undo())
        self._take_weights(index)
        self.differences += signature.differences(self.model, index.model)

    @property
    def text(self) -> str:
        biases = f', {len(self.corrections)} corrected biases' if self.corrections else ''
        return (
            f'apart from its roundings: {len(self.weights)} weights and biases, '
            f'{len({name for name, _ in self.rounded.values()})} activations{biases}'
        )

    def _undo(self) -> dict[str, list[tuple[str, int]]]:
        """Take out Q/DQ pairs; returns tensor -> (node, place of the input) that reads it unrounded."""
        graph, kept = self.model.graph, []
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        written: dict[str, tuple[str, Rounding]] = {}
        sources: dict[str, str] = {}
        readers: dict[str, list[tuple[str, int]]] = {}
        for node in graph.node:
            rounding = _rounding(node, arrays)
            source, output = node.input[0] if node.input else '', node.output[0]
            if self._is_constant(node, rounding, arrays):
                continue
            if rounding and node.op_type == 'QuantizeLinear':
                written[output] = self.rounded[node.name] = sources.get(source, source), rounding
            elif rounding and source in written:
                sources[output], expected = written[source]
                if not rounding.equals(expected):
                    self._differ(node, 'its scale or zero point is not that of the QuantizeLinear before it')
            elif node.op_type in MOVES and source in written:
                kept.append(_on_floats(node, written[source][0]))
                written[output] = kept[-1].output[0], written[source][1]
            else:
                kept.append(node)
                for place, name in enumerate(node.input):
                    if name not in sources:
                        readers.setdefault(name, []).append((node.name, place))
        refill(graph, node=kept)
        graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in self.weights)
        names = self._rename(sources)
        return {names.get(name, name): places for name, places in readers.items()}

    def _is_constant(
        self, node: onnx.NodeProto, rounding: Rounding | None, arrays: dict[str, np.ndarray]
    ) -> bool:
        """Compute a rounding of constants, or a copy of one."""
        source, output = node.input[0] if node.input else '', node.output[0]
        if source not in arrays:
            return False
        if rounding and node.op_type == 'QuantizeLinear':
            arrays[output] = rounding.codes(arrays[source])
        elif rounding:
            self.weights[output] = arrays[source], rounding
            arrays[output] = rounding.values(arrays[source])
        elif node.op_type == 'Identity' and source in self.weights:
            self.weights[output], arrays[output] = self.weights[source], arrays[source]
        else:
            return False
        return True

    def _rename(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Let nodes read what was rounded, and write the graph's outputs; returns old -> new names."""
        graph = self.model.graph
        outputs = {sources[value.name]: value.name for value in graph.output if value.name in sources}
        names = {name: outputs.get(source, source) for name, source in sources.items()} | outputs
        for value in graph.output:
            names.pop(value.name, None)
        rename_tensors(graph, lambda name: names.get(name, name))
        self.rounded = {node: (names.get(name, name), how) for node, (name, how) in self.rounded.items()}
        return names

    def _restore(self, fresh: Index, readers: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        """Put back nodes that clip where the codes of the file end."""
        graph, index, names = self.model.graph, Index(self.model), set(all_tensor_names(self.model))
        positions = {node.name: position for position, node in enumerate(index.nodes)}
        ends = {name: rounding.ends for name, rounding in self.rounded.values()}
        added: dict[int, onnx.NodeProto] = {}
        for node in fresh.nodes:
            before = fresh.producer(node.input[0]) if node.op_type in REMOVED else None
            if node.name in positions or before is None or fresh.nodes[before].name not in positions:
                continue
            position = positions[fresh.nodes[before].name]
            producer = index.nodes[position]
            name = producer.output[list(fresh.nodes[before].output).index(node.input[0])]
            if not _clips_at(node, fresh, ends.get(name)):
                continue
            inner = claim_name(name, names)
            producer.output[:] = [inner if output == name else output for output in producer.output]
            for reader, place in readers.get(name, ()):
                index.nodes[index.find_node(reader)].input[place] = inner
            added[position] = copy.deepcopy(node)
            added[position].input[0], added[position].output[0] = inner, name
            graph.initializer.extend(fresh.constants[end] for end in node.input[1:] if {end} - names - {''})
            names.update(node.input)
        pairs = ([node, added.get(position)] for position, node in enumerate(index.nodes))
        refill(graph, node=filter(None, itertools.chain(*pairs)))

    def _take_weights(self, fresh: Index) -> None:
        """Compare weights and biases with the fresh ones, and put these in their places."""
        graph = self.model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        scales = {name: rounding.scale for name, rounding in self.rounded.values()}
        nodes, taken = {node.name: node for node in fresh.nodes}, {}
        for node in graph.node:
            expected = nodes[node.name].input if node.name in nodes else ()
            weight = self.weights.get(node.input[1]) if len(node.input) > 1 else None
            for place, (name, other) in enumerate(zip(node.input, expected, strict=False)):
                is_bias = place == 2 and weight is not None
                if name not in constants or other not in fresh.constants:
                    continue
                values = numpy_helper.to_array(fresh.constants[other])
                new = f'{name}/float'
                if name in self.weights:
                    codes, rounding = self.weights[name]
                    is_scaled = is_bias and node.input[0] in scales
                    scale = weight[1].scale * scales[node.input[0]] if is_scaled else None
                    detail = _difference(codes, rounding, values, scale)
                    if detail and new not in taken:
                        self._differ(node, f'{"bias" if is_bias else "weight"}: {detail}')
                elif is_bias:
                    new = f'{name}/{node.name}'
                    self._take_bias(node, numpy_helper.to_array(constants[name]), values)
                else:
                    continue
                taken[new] = numpy_helper.from_array(values, new)
                node.input[place] = new
        graph.initializer.extend(taken.values())

    def _take_bias(self, node: onnx.NodeProto, bias: np.ndarray, values: np.ndarray) -> None:
        if bias.shape != values.shape:
            self._differ(node, f'bias: has {bias.size} values, in the model {values.size}')
        elif not np.allclose(bias, values, RTOL, RTOL * np.abs(values).max(initial=0)):
            if self.model.producer_name == ORT:
                self._differ(node, f'bias: differs by up to {np.abs(bias - values).max():.3g}')
            self.corrections[node.name] = bias - values

    def _differ(self, node: onnx.NodeProto, detail: str) -> None:
        self.differences.append(GraphDifference('initializer', node.name, module_path(node), detail))

    def measured(self, feeds: Iterable[Mapping[str, np.ndarray]]) -> list[GraphDifference]:
        """Run the float graph, and return roundings and corrections that do not fit its values."""
        nodes = {node.name: node for node in self.model.graph.node}
        rounded = list(dict.fromkeys(name for name, _ in self.rounded.values()))
        layers = {name: nodes[name].output[0] for name in self.corrections}
        runner = Runner(_with_figures(self.model, rounded, layers.values()))
        ranges = {name: np.zeros((2, len(CUT))) for name in rounded}
        sizes = dict.fromkeys(rounded, 0)
        squares: dict[str, list[np.ndarray]] = {name: [] for name in layers}
        for feed in feeds:
            figures = runner.run(feed)
            for name in rounded:
                least, most = figures[f'{name}/least'], figures[f'{name}/most']
                size = int(figures[f'{name}/size'][0])
                sizes[name] += size
                if size:
                    places = np.minimum(size * CUT / 2, len(most) - 1).astype(int)
                    low, high = ranges[name]
                    ranges[name] = np.array([np.minimum(low, least[places]), np.maximum(high, most[places])])
            for layer, name in layers.items():
                squares[layer].append(figures[f'{name}/squares'].mean(axis=0).ravel())
        seen = {name: ends for name, ends in ranges.items() if sizes[name] >= FEWEST_VALUES and ends.any()}
        return [*self._unlike_ranges(seen), *self._unlike_corrections(squares)]

    def _unlike_ranges(self, ranges: Mapping[str, np.ndarray]) -> list[GraphDifference]:
        rounded = {node: one for node, one in self.rounded.items() if one[0] in ranges}
        if not rounded:
            return []
        widths = np.array([_width(how, *ranges[name]) for name, how in rounded.values()])
        cut = np.argmin(np.abs(np.log(np.median(widths, axis=0))))
        index, found = Index(self.model), {}
        for (node, (name, rounding)), width in zip(rounded.items(), widths[:, cut], strict=True):
            (low, high), (least, most) = rounding.ends, ranges[name][:, cut]
            covered = (min(high, most) - max(low, least)) / max(most - least, 1e-30)
            producer = index.producer(name)
            is_relu = producer is not None and index.nodes[producer].op_type == 'Relu'
            text = f'rounds to [{low:.3g}, {high:.3g}]'
            if min(width, covered) < NARROW or width > WIDE:
                found[name] = node, f'{text}, the values of the proof are in [{least:.3g}, {most:.3g}]'
            elif is_relu and RTOL < -low / (high - low) < 0.49:
                found[name] = node, f'{text}, but {name} is not below 0'
        return [GraphDifference('initializer', node, '', detail) for node, detail in found.values()]

    def _unlike_corrections(self, squares: Mapping[str, Sequence[np.ndarray]]) -> list[GraphDifference]:
        found = []
        for layer, change in self.corrections.items():
            size = np.sqrt(np.mean(squares[layer], axis=0))
            parts = np.abs(change).ravel() / np.maximum(size, 1e-30)
            if parts.max() > CORRECTION:
                detail = f'bias: value {parts.argmax()} is changed by {parts.max():.2f} of its channel'
                found.append(GraphDifference('initializer', layer, '', detail))
        return found


def _width(rounding: Rounding, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Range of the codes over ranges of values; codes on both sides of 0 alike round the larger side."""
    low, high = rounding.ends
    is_even = abs(low + high) < 0.01 * (high - low)
    sizes = 2 * np.maximum(-least, most) if is_even else most - least
    return (high - low) / np.where(sizes > 0, sizes, sizes[0])


def _with_figures(model: onnx.ModelProto, rounded: Iterable[str], layers: Iterable[str]) -> onnx.ModelProto:
    """Copy a graph whose outputs are figures of its tensors."""
    result = copy.deepcopy(model)
    graph, outputs = result.graph, []

    def add(operator: str, name: str, output: str, **attributes: int) -> None:
        graph.node.append(helper.make_node(operator, [name], [output], **attributes))
        outputs.append(helper.make_empty_tensor_value_info(output))

    constants = dict(all=[-1], more=[LARGEST - 1], every=[LARGEST])
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value), f'/{key}') for key, value in constants.items()
    )
    for name in rounded:
        values, size = f'{name}/values', f'{name}/size'
        graph.node.append(helper.make_node('Reshape', [name, '/all'], [values]))
        add('Shape', values, size)
        graph.node.append(helper.make_node('Add', [size, '/more'], [f'{size}/more']))
        graph.node.append(helper.make_node('Div', [f'{size}/more', '/every'], [f'{size}/cut']))
        for output, largest in (('least', 0), ('most', 1)):
            end = [f'{name}/{output}', f'{name}/{output}/places']
            graph.node.append(helper.make_node('TopK', [values, f'{size}/cut'], end, largest=largest))
            outputs.append(helper.make_empty_tensor_value_info(end[0]))
    for name in layers:
        graph.node.append(helper.make_node('Mul', [name, name], [f'{name}/square']))
        add('GlobalAveragePool', f'{name}/square', f'{name}/squares')
    refill(graph, output=outputs)
    return result


def _on_floats(node: onnx.NodeProto, source: str) -> onnx.NodeProto:
    result = copy.deepcopy(node)
    result.name = node.name.removesuffix(QUANT)
    result.input[0], result.output[0] = source, f'{node.output[0]}/float'
    return result


def _with_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace operators on codes by float operators and Q/DQ pairs, in place."""
    graph, nodes = model.graph, []
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ON_CODES:
            nodes.append(node)
            continue
        (x, weight, written), (*bias,) = (node.input[:3], node.input[3:6], node.input[6:8]), node.input[8:]
        name, groups = node.name.removesuffix(QUANT), [x, weight]
        if bias and {x[1], weight[1]} <= arrays.keys():
            scale = numpy_helper.from_array(arrays[x[1]] * arrays[weight[1]], f'{name}/scale')
            graph.initializer.append(scale)
            groups.append([*bias, scale.name])
        axis = dict(axis=0 if node.op_type == 'QLinearConv' else 1)
        inputs = [f'{name}/{place}' for place in range(len(groups))]
        for group, output in zip(groups, inputs, strict=True):
            axes = dict(axis=0) if group is groups[-1] and len(groups) > 2 else axis
            nodes.append(helper.make_node('DequantizeLinear', group, [output], output, **axes))
        nodes.append(helper.make_node(ON_CODES[node.op_type], inputs, [f'{name}/values'], name))
        nodes[-1].attribute.extend(node.attribute)
        pair = [f'{name}/values', *written]
        nodes.append(helper.make_node('QuantizeLinear', pair, node.output, f'{name}/QuantizeLinear'))
    refill(graph, node=nodes)
    return model


def _rounding(node: onnx.NodeProto, arrays: Mapping[str, np.ndarray]) -> Rounding | None:
    """Return how a Q or DQ node with a constant scale rounds."""
    if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
        return None
    scale, zero = (arrays.get(name) for name in (*node.input, '')[1:3])
    if scale is None or (zero is None and len(node.input) > 2 and node.input[2]):
        return None
    if zero is None:
        codes = arrays.get(node.input[0]) if node.op_type == 'DequantizeLinear' else None
        zero = np.zeros(scale.shape, np.uint8 if codes is None else codes.dtype)
    axis = next((entry.i for entry in node.attribute if entry.name == 'axis'), 1)
    return Rounding(scale, np.broadcast_to(zero, scale.shape), axis)


def _clips_at(node: onnx.NodeProto, index: Index, ends: tuple[float, float] | None) -> bool:
    if ends is None:
        return False
    limits = [index.constants.get(name) for name in (*node.input, '', '')[1:3]]
    limits = [None if limit is None else float(numpy_helper.to_array(limit)) for limit in limits]
    least, most = (0.0, None) if node.op_type == 'Relu' else limits
    slack = 1e-6 * (ends[1] - ends[0])
    return (least is None or ends[0] >= least - slack) and (most is None or ends[1] <= most + slack)


def _difference(codes: np.ndarray, rounding: Rounding, values: np.ndarray, scale: np.ndarray | None) -> str:
    """Return why codes are not values rounded to the nearest, or ''; `scale`: required of a bias."""
    if codes.shape != values.shape:
        return f'has the shape {codes.shape}, in the model {values.shape}'
    scales, zero = rounding.steps(codes.ndim)
    limits = np.iinfo(codes.dtype)
    is_last = (codes == limits.min) | (codes == limits.max)
    is_far = np.abs(values / scales + zero - codes) > np.where(is_last, LAST, HALF)
    axis = rounding.axis % codes.ndim if rounding.scale.size > 1 else None
    others = tuple(place for place in range(codes.ndim) if place != axis)
    if is_far.any():
        row = '' if axis is None else f', most in row {np.argmax(np.sum(is_far, axis=others))}'
        return f"{np.count_nonzero(is_far):,} of {codes.size:,} codes are not the model's values rounded{row}"
    if scale is not None and not np.allclose(rounding.scale, scale, 1e-3, 0):
        return 'its scale is not the scales of input and weight multiplied'
    if codes.dtype == np.int32:
        return ''
    largest = np.max(np.abs(codes - zero), axis=others)
    is_coarse = (largest < FEWEST_CODES) & (np.max(np.abs(values), axis=others) > 1e-30)
    if is_coarse.any():
        row = '' if axis is None else f' of row {np.argmax(is_coarse)}'
        return f'the scale{row} is too large: the largest code is {largest[is_coarse].min():.0f}'
    return ''


def _without_idle_casts(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """Copy a model without the Casts to a tensor's own type that another tool removed."""
    result, type_of = with_initializers(model), types.infer(model)
    graph, sources, nodes = result.graph, {}, []
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        is_kept = node.op_type != 'Cast' or node.name in kept or node.output[0] in outputs
        source = None if is_kept else type_of.get(node.input[0])
        if source is not None and source.tensor_type.elem_type == helper.get_node_attr_value(node, 'to'):
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
        else:
            nodes.append(node)
    refill(graph, node=nodes)
    rename_tensors(graph, lambda name: sources.get(name, name))
    return result
