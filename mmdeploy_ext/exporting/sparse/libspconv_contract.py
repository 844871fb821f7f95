"""Rules of NVIDIA's engine for a libspconv file, without the engine. Needs onnx and numpy only.

`check` parses like the engine (`EngineParser`) and looks for mistaken values, contradicting coordinate
orders, nodes that do not fit together (`TensorWalk`) and known faults (`libspconv_measured`).
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mmdeploy_ext.base.violations import ERROR, WARNING, Violation
from mmdeploy_ext.exporting.sparse.libspconv import ADDITIONS, GEOMETRY, EngineParser
from mmdeploy_ext.graphs.io.files import is_sparse, read
from mmdeploy_ext.runtime.sparse.ir import ORDERS
from mmdeploy_ext.runtime.sparse.plan import dense_output_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.exporting.sparse.libspconv import ParsedNode

    NodeViolations = Iterator[tuple[str, ...]]
    """Attribute, rule, message and perhaps severity of each violation."""


# Measured behaviour of libspconv 1.1.10 (CUDA 12.6) on single convolutions, on an NVIDIA H200.
#
# 300 random sites each, compared with numpy (docs/models-lidar.md).


VERSION = 'libspconv 1.1.10'
CHANNELS = (
    (4, 16), (5, 16), (8, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128),
)  # fmt: skip
"""(input, output) channels with kernels, of 126 pairs tried."""
SUBMANIFOLD_KERNEL = (3, 3, 3)
"""Only correct submanifold kernel: 1x1x3, 3x1x1, 1x3x3, 5x5x5 and 3x5x7 gave other values for 20 to 100 % of
the sites, 1x1x1 did not start."""
LARGEST_GRID = (1024, 2048, 2048)
"""Most cells per axis of `input_spatial_shape`; beyond, sites this far apart are taken for one another."""
NO_ACTIVATION = ('Sigmoid', 'LeakyReLU')
"""Activations that libspconv loads and ignores."""


def rules_of_convolution(node: ParsedNode) -> Iterator[tuple[str, str, str, str]]:
    values, weight = node.values, node.weight
    if weight.ndim == 5 and (weight.shape[-1], weight.shape[0]) not in CHANNELS:
        pairs = ', '.join(f'{inputs} -> {outputs}' for inputs, outputs in CHANNELS)
        message = (
            f'{weight.shape[-1]} -> {weight.shape[0]} channels: {VERSION} has no such kernel and aborts '
            f'when it loads the file; it has {pairs}'
        )
        yield 'weight', 'no-kernel', message, WARNING
    kernel, dilation = tuple(values['kernel_size']), tuple(values['dilation'])
    if values['subm'] and len(kernel) == 3 and (kernel != SUBMANIFOLD_KERNEL or set(dilation) != {1}):
        shape = 'x'.join(map(str, kernel))
        dilated = f' with dilation {list(dilation)}' if set(dilation) != {1} else ''
        message = (
            f'a submanifold kernel of {shape}{dilated}: {VERSION} does not start or computes other values '
            'than spconv; write a smaller kernel as 3x3x3 with zeros around it'
        )
        yield 'kernel_size', 'submanifold-kernel', message, ERROR
    if values['activation'] in NO_ACTIVATION:
        message = f'activation={values["activation"]!r}: {VERSION} loads it but applies no activation'
        yield 'activation', 'activation', message, ERROR


def rules_of_grid(node: ParsedNode) -> Iterator[tuple[str, str, str, str]]:
    grid = node.unread['input_spatial_shape']
    if len(grid) != 3:
        return
    for axis, (cells, largest) in enumerate(zip(grid, LARGEST_GRID, strict=True)):
        if cells > largest:
            advice = ''
            if axis == 0 and cells <= LARGEST_GRID[2] and grid[2] <= LARGEST_GRID[0]:
                advice = '; the other --order has room for it'
            message = (
                f'axis {axis} has {cells} cells, but {VERSION} distinguishes only {largest}: it treats '
                f'sites {largest} cells apart on this axis as neighbours{advice}'
            )
            yield 'input_spatial_shape', 'grid-size', message, WARNING


INT8 = 'int8'
USUAL_MAX_VOXELS = 160000
"""Limit of BEVFusion's and CenterPoint's published test configs."""
FLAT_RATIO = 4
"""With this many times the cells of the shortest axis, z is probably another axis."""
ACTIVATIONS = ('', 'None', 'ReLU')
PRECISIONS = ('', 'fp16', INT8)


def order_of_name(path: str | os.PathLike[str]) -> str:
    """Coordinate order in a file name ('xyz' of 'lidar.backbone.xyz.onnx'), or ''."""
    words = Path(os.fspath(path)).name.lower().split('.')
    return next((order for order in ORDERS if order in words), '')


def check(
    source: str | os.PathLike[str] | onnx.ModelProto, *, max_voxels: int | None = None, name: str = ''
) -> list[Violation]:
    """Violations of the engine's rules, in file order of the nodes.

    `max_voxels`: smaller output bounds are errors; None: warnings below 160,000. `name` gives the order of
    coordinates. ModelFileError: missing, empty or corrupt.
    """
    if not isinstance(source, onnx.ModelProto):
        name = name or os.fspath(source)
        source = read(source)
    if not is_sparse(source):
        message = (
            'there is no SparseConvolution: this is not a file of the libspconv dialect (perhaps a '
            'portable or dense ONNX file); the engine rejects it'
        )
        return [Violation('', '', 'other-dialect', message)]
    graph = source.graph
    parser = EngineParser(graph)
    nodes = parser.nodes
    violations = parser.violations
    for node in nodes:
        violations.extend(Violation(node.name, *entry) for entry in _node_rules(node))
    violations.extend(_graph_rules(graph, nodes))
    violations.extend(TensorWalk(graph, nodes, max_voxels).violations)
    violations.extend(_order_rules(nodes, order_of_name(name)))
    first = next((node for node in nodes if node.is_convolution), None)
    if first is not None:
        rules = rules_of_grid(first)
        violations.extend(Violation(first.name, *entry) for entry in rules)
    positions = {node.name: index for index, node in enumerate(nodes)}
    return sorted(violations, key=lambda entry: (positions.get(entry.node, -1), entry.severity))


# ---- single nodes: values that the engine accepts and that must be mistakes


def _node_rules(node: ParsedNode) -> NodeViolations:
    values = node.values
    if node.is_convolution:
        yield from _geometry_rules(node)
        yield from _array_rules(node)
        yield from _unread_rules(node)
        yield from rules_of_convolution(node)
    if node.op_type == 'ScatterDense':
        order = values['format']
        if order not in ('', *ORDERS):
            yield 'format', 'attribute-value', f"format={order!r}; the engine supports 'xyz' and 'zyx'"
    for name in ('precision', 'output_precision'):
        if values.get(name, '') not in PRECISIONS:
            message = (
                f"{name}={values[name]!r}: only 'int8' means int8; the engine reads anything else as Float16"
            )
            yield name, 'precision', message
    yield from _range_rules(node)


def _geometry_rules(node: ParsedNode) -> NodeViolations:
    values = node.values
    for name, smallest in GEOMETRY.items():
        triple = values[name]
        if triple and (len(triple) != 3 or min(triple) < smallest):
            message = f'{name}={list(triple)}, expected three values of at least {smallest}'
            yield name, 'attribute-value', message
    activation = values['activation']
    if activation not in (*ACTIVATIONS, *NO_ACTIVATION):
        message = f"activation={activation!r}; the engine supports 'ReLU' and 'None', spelled like this"
        yield 'activation', 'activation', message
    if values['output_bound'] < 1:
        message = f'output_bound={values["output_bound"]}: the engine reserves memory for no active site'
        yield 'output_bound', 'output-bound', message
    if values['kernel_size'] == (1, 1, 1) and not values['subm']:
        message = (
            'a 1x1x1 kernel: users found it silently wrong in libspconv (Lidar_AI_Solution#300, #302); '
            '3x3x3 with padding 1 and zeros around the centre gives the same values at the same sites'
        )
        yield 'kernel_size', 'pointwise-kernel', message, WARNING


def _array_rules(node: ParsedNode) -> NodeViolations:
    weight, bias, kernel = node.weight, node.bias, node.values['kernel_size']
    if weight.size:
        shape = list(weight.shape)
        if weight.ndim != 5 or (kernel and weight.shape[1:4] != kernel):
            message = f'weight is {shape}, expected [O, {", ".join(map(str, kernel))}, I]'
            yield 'weight', 'weight-shape', message
        elif bias.size and bias.shape != weight.shape[:1]:
            message = f'bias is {list(bias.shape)}, the weight {shape} has {weight.shape[0]} output channels'
            yield 'bias', 'bias-shape', message
    for name, array in (('weight', weight), ('bias', bias)):
        count = array.size - int(np.isfinite(array).sum())
        if count:
            yield name, 'not-finite', f'{count} of {array.size} values of the {name} are NaN or infinite'
    if weight.size and not weight.any():
        yield 'weight', 'all-zero', 'all weights are zero: check that the checkpoint was loaded', WARNING


def _unread_rules(node: ParsedNode) -> NodeViolations:
    unread, shape = node.unread, node.weight.shape
    for name, value, behaviour in (
        ('ndim', 3, 'computes three dimensions'),
        ('groups', 1, 'computes one group'),
        ('transposed', 0, 'computes an ordinary convolution'),
    ):
        if unread[name] != value:
            yield name, 'never-read', f'{name}={unread[name]}: the engine never reads it and {behaviour}'
    if any(unread['output_padding']):
        message = f'output_padding={list(unread["output_padding"])}: the engine never reads it and adds none'
        yield 'output_padding', 'never-read', message
    for name, axis in (('out_channels', 0), ('in_channels', -1)):
        if unread[name] and len(shape) == 5 and unread[name] != shape[axis]:
            yield name, 'weight-shape', f'{name}={unread[name]}, the weight {list(shape)} has {shape[axis]}'


def _range_problem(amax: float) -> str:
    if amax == 0:
        return 'is 0 or was never set'
    return '' if 0 < amax < np.inf else f'is {amax:g}'


def _range_rules(node: ParsedNode) -> NodeViolations:
    ranges = node.input_ranges
    computes_int8 = node.values.get('precision') == INT8
    for name, amax in ranges.items():
        problem = _range_problem(amax)
        if computes_int8 and problem:
            message = (
                f'precision is int8 and {name} {problem}; the engine divides by amax / 127 of it: the layer '
                f'gives zeros or NaN. Calibrate, or set precision to fp16'
            )
            yield name, 'amax', message
    if node.is_convolution:
        yield from _weight_range_rules(node, computes_int8)
    if any(ranges.values()) and not any(node.values.get(name) for name in ('precision', 'output_precision')):
        message = f'{next(iter(ranges))} is set but precision is not: the engine uses Float16'
        yield 'precision', 'precision', message, WARNING


def _weight_range_rules(node: ParsedNode, computes_int8: bool) -> NodeViolations:
    name = 'weight_dynamic_ranges'
    ranges, channels = node.values[name] or (), node.weight.shape[0] if node.weight.ndim == 5 else 0
    if computes_int8 and not ranges:
        message = f'precision is int8 and {name} is missing or empty; the engine has no scale for the weights'
        yield name, 'amax', message
    if ranges and channels and len(ranges) != channels:
        message = f'{name} has {len(ranges)} values, the weight has {channels} output channels'
        yield name, 'range-length', message
    unusable = [index for index, amax in enumerate(ranges) if _range_problem(amax)]
    if unusable:
        indices = ', '.join(map(str, unusable[:5])) + (' ...' if len(unusable) > 5 else '')
        problem = _range_problem(ranges[unusable[0]])
        message = f'{name} {problem} for {len(unusable)} of {len(ranges)} channels ({indices})'
        yield name, 'amax', message, ERROR if computes_int8 else WARNING


# ---- the graph: its inputs and outputs, connections, and order of coordinates


def _graph_rules(graph: onnx.GraphProto, nodes: list[ParsedNode]) -> Iterator[Violation]:
    used = {entry.name for entry in graph.output} | {name for node in nodes for name in node.inputs}
    for node in nodes:
        if node.output not in used:
            message = (
                f'its output {node.output!r} is used by no node: the graph is disconnected, since the '
                'next node reads another tensor. Something in between was not traced, perhaps a '
                'BatchNorm that is not folded'
            )
            yield Violation(node.name, node.output, 'disconnected', message)


def _order_rules(nodes: list[ParsedNode], file_order: str) -> Iterator[Violation]:
    consumers = {node.inputs[0]: node for node in nodes if node.inputs}
    convolution = next((node for node in nodes if node.is_convolution), None)
    for node in nodes:
        order = node.values.get('format')
        if node.op_type != 'ScatterDense' or order not in ORDERS:
            continue
        if file_order and order != file_order:
            message = (
                f"format={order!r}, the file's name says {file_order!r}: coordinates would be fed in the "
                f'wrong order'
            )
            yield Violation(node.name, 'format', 'order', message)
        z_axis = order.index('z')
        grids = [(node, node.values['input_spatial_shape'])]
        if convolution is not None:
            grids.append((convolution, convolution.unread['input_spatial_shape']))
        for owner, grid in grids:
            if len(grid) == 3 and grid[z_axis] > FLAT_RATIO * min(grid):
                message = (
                    f'format={order!r} makes axis {z_axis} z, but {list(grid)} of {owner.name} has its '
                    'shortest axis elsewhere: coordinates, weights or shapes may be in the other order'
                )
                yield Violation(node.name, 'format', 'order', message, WARNING)
                break
        # the dense tail has to merge z, and no other axis, into the channels
        tail = consumers.get(node.output)
        transposed = tail is not None and tail.op_type == 'Transpose'
        dims = tail.values['dims'] if transposed else range(5)
        if len(dims) == 5 and dims[2] != 2 + z_axis:
            message = (
                f'axis {dims[2]} of the dense tensor lies beside the channels, but format={order!r} of '
                f'{node.name} has z on axis {2 + z_axis}: the BEV map would be seen from the side'
            )
            yield Violation(tail.name if transposed else node.name, 'dims', 'order', message)


# ---- how the nodes fit together


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    channels: int = 0
    grid: tuple[int, ...] = ()
    sites: str = ''
    shape: tuple[int, ...] = ()
    dense: bool = False


class TensorWalk:
    """Follows tensors through the graph: connections, grids, ranges, room for active sites.

    Attributes:
        violations: nodes that do not fit together.
        tensors: name -> facts of inputs and outputs.
    """

    def __init__(self, graph: onnx.GraphProto, nodes: list[ParsedNode], max_voxels: int | None) -> None:
        self.violations: list[Violation] = []
        self.tensors = {entry.name: TensorFacts(sites='input') for entry in graph.input}
        self._max_voxels = max_voxels
        self._rulebooks: dict[str, tuple[ParsedNode, TensorFacts]] = {}
        self._consumers: dict[str, list[ParsedNode]] = {}
        for node in nodes:
            for name in node.inputs:
                self._consumers.setdefault(name, []).append(node)
        for node in nodes:
            inputs = [self.tensors.get(name, TensorFacts()) for name in node.inputs]
            self.tensors[node.output] = TensorFacts()
            if len(inputs) == (2 if node.op_type in ADDITIONS else 1):
                self.tensors[node.output] = self._output(node, inputs)
            if node.values.get('output_precision') == INT8:
                self._check_int8_consumers(node)

    def _report(
        self, node: ParsedNode, attribute: str, rule: str, message: str, severity: str = ERROR
    ) -> None:
        self.violations.append(Violation(node.name, attribute, rule, message, severity))

    def _output(self, node: ParsedNode, inputs: list[TensorFacts]) -> TensorFacts:
        if node.op_type == 'SparseConvolution':
            return self._convolution(node, inputs[0])
        if node.op_type in ADDITIONS:
            return self._add(node, *inputs)
        if node.op_type == 'ScatterDense':
            return self._scatter(node, inputs[0])
        if node.op_type == 'Transpose':
            return self._transpose(node, inputs[0])
        if node.op_type == 'Reshape':
            return dataclasses.replace(inputs[0], shape=node.values['dims'])
        return inputs[0]  # Relu

    def _convolution(self, node: ParsedNode, source: TensorFacts) -> TensorFacts:
        weight, stated = node.weight, node.unread['input_spatial_shape']
        if weight.ndim == 5 and source.channels and weight.shape[4] != source.channels:
            message = f'weight {list(weight.shape)} takes {weight.shape[4]} channels'
            self._report(node, 'weight', 'weight-shape', f'{message}, its input has {source.channels}')
        grid = source.grid or stated
        if stated and grid != stated:
            message = f'input_spatial_shape={list(stated)}, its input is on {list(grid)}'
            self._report(node, 'input_spatial_shape', 'spatial-shape', message)
        source = dataclasses.replace(source, grid=grid)
        target = self._target(node, source)
        stated = node.unread['output_spatial_shape']
        if stated and target.grid and target.grid != stated:
            message = (
                f'output_spatial_shape={list(stated)}, but {_geometry_text(node)} on {list(grid)} give '
                f'{list(target.grid)}; the engine never reads it and uses the latter'
            )
            self._report(node, 'output_spatial_shape', 'spatial-shape', message)
        if node.values['rulebook'] and not node.values['inverse']:
            self._check_rulebook(node, source)
        self._check_output_bound(node, target)
        channels = weight.shape[0] if weight.ndim == 5 else 0
        return dataclasses.replace(target, channels=channels, shape=(), dense=False)

    def _target(self, node: ParsedNode, source: TensorFacts) -> TensorFacts:
        if node.values['inverse']:
            counterpart = self._rulebooks.get(node.values['rulebook'])
            if counterpart is not None:  # back to the input of the convolution with the same rulebook
                return counterpart[1]
            message = (
                f'inverse convolution with rulebook {node.values["rulebook"]!r}, which no convolution '
                'before it has: the engine cannot restore its sites'
            )
            self._report(node, 'rulebook', 'rulebook', message)
            return TensorFacts(sites=node.name)
        if node.values['subm']:
            return source
        geometry = [node.values[name] for name in GEOMETRY]
        if len(source.grid) != 3 or any(len(triple) != 3 for triple in geometry) or 0 in geometry[1]:
            return TensorFacts(sites=node.name)
        grid = dense_output_shape(source.grid, *geometry)
        if min(grid) < 1:
            message = f'{_geometry_text(node)} on {list(source.grid)} leave {list(grid)} cells'
            self._report(node, 'kernel_size', 'spatial-shape', message)
        return TensorFacts(grid=grid, sites=node.name)

    def _check_rulebook(self, node: ParsedNode, source: TensorFacts) -> None:
        key, subm = node.values['rulebook'], node.values['subm']
        first, first_source = self._rulebooks.setdefault(key, (node, source))
        names = ['kernel_size', 'dilation', 'subm']
        if not subm:
            names += ['stride', 'padding']
        differences = [name for name in names if first.values[name] != node.values[name]]
        if first_source.sites and source.sites and first_source.sites != source.sites:
            differences.append('the set of active sites')
        if differences:
            message = (
                f'shares rulebook {key!r} with {first.name}, which has another '
                f'{", another ".join(differences)}; the engine uses the neighbours of {first.name} for both'
            )
            self._report(node, 'rulebook', 'rulebook', message)

    def _check_output_bound(self, node: ParsedNode, target: TensorFacts) -> None:
        bound = node.values['output_bound']
        consequence = 'the engine has no memory for more active sites'
        traced_rows = node.unread['output_shape'][:1]
        if traced_rows and traced_rows[0] > bound > 0:
            message = f'output_bound={bound}, but {traced_rows[0]} sites were active when it was traced; '
            self._report(node, 'output_bound', 'output-bound', message + consequence)
            return
        cells = math.prod(target.grid) if target.grid else math.inf
        expected = min(USUAL_MAX_VOXELS if self._max_voxels is None else self._max_voxels, cells)
        if 0 < bound < expected:
            origin = 'of the usual test configs' if self._max_voxels is None else 'of --max-voxels'
            message = f'output_bound={bound} is less than the {expected} voxels {origin}; {consequence}'
            if target.sites != 'input':
                message += ' (a strided level may have more sites than there are voxels: 1.6 times on a real '
                message += 'sweep)'
            is_certain = self._max_voxels is not None and target.sites == 'input'
            self._report(node, 'output_bound', 'output-bound', message, ERROR if is_certain else WARNING)

    def _add(self, node: ParsedNode, first: TensorFacts, second: TensorFacts) -> TensorFacts:
        if first.channels and second.channels and first.channels != second.channels:
            message = f'adds {first.channels} channels to {second.channels}'
            self._report(node, '', 'add-shape', message)
        if first.sites and second.sites and first.sites != second.sites:
            message = 'its inputs are not on the same active sites; the engine adds row by row'
            self._report(node, '', 'add-shape', message)
        return first

    def _check_int8_consumers(self, node: ParsedNode) -> None:
        visited, tensors = set(), [node.output]
        while tensors:
            for consumer in self._consumers.get(tensors.pop(), []):
                if consumer.op_type == 'Relu' and consumer.output not in visited:
                    visited.add(consumer.output)
                    tensors.append(consumer.output)
                unset = [name for name, amax in consumer.input_ranges.items() if _range_problem(amax)]
                if unset and consumer.values.get('precision') != INT8:
                    message = (
                        f'{unset[0]} is unset, but {node.name} stores its output as int8: no scale for it'
                    )
                    self._report(consumer, unset[0], 'amax', message)

    def _scatter(self, node: ParsedNode, source: TensorFacts) -> TensorFacts:
        grid, shape = node.values['input_spatial_shape'], node.values['output_shape']
        if grid and source.grid and grid != source.grid:
            message = (
                f'input_spatial_shape={list(grid)}, its input is on {list(source.grid)}; the engine '
                f'scatters outside the tensor or leaves holes'
            )
            self._report(node, 'input_spatial_shape', 'spatial-shape', message)
        expected = (1, source.channels or sum(shape[1:2]), *grid)
        if shape and grid and shape != expected:
            message = f'output_shape={list(shape)}, expected (1, C, grid) = {list(expected)}'
            self._report(node, 'output_shape', 'spatial-shape', message)
        return TensorFacts(source.channels, grid or source.grid, source.sites, shape, dense=True)

    def _transpose(self, node: ParsedNode, source: TensorFacts) -> TensorFacts:
        dims = node.values['dims']
        if sorted(dims) != list(range(len(source.shape))):
            return TensorFacts(dense=True)
        return dataclasses.replace(source, shape=tuple(source.shape[axis] for axis in dims))


def _geometry_text(node: ParsedNode) -> str:
    if node.values['subm']:
        return f'kernel_size {list(node.values["kernel_size"])} (submanifold)'
    return ', '.join(f'{name} {list(node.values[name])}' for name in GEOMETRY)
