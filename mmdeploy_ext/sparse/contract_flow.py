"""Rules about how the nodes of a libspconv file fit together: connections, grids, ranges, room."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import onnx

from mmdeploy_ext.graph.io.types import type_name
from mmdeploy_ext.sparse.contract_fields import ERROR, INT8, WARNING, Violation
from mmdeploy_ext.sparse.contract_rules import TRIPLES, input_ranges, range_problem
from mmdeploy_ext.sparse.plan import dense_output_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.sparse.contract_fields import Layer

USUAL_MAX_VOXELS = 160000
"""What the published test configs of BEVFusion and CenterPoint allow."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """What a tensor is.

    Attributes:
        channels: of a sparse tensor.
        grid: per axis; () where nothing says.
        sites: name of its set of active sites: tensors with the same one have their rows in the same places.
        shape: of a dense tensor; () of a sparse one.
    """

    channels: int = 0
    grid: tuple[int, ...] = ()
    sites: str = ''
    shape: tuple[int, ...] = ()
    dense: bool = False


def graph_rules(graph: onnx.GraphProto, layers: list[Layer]) -> Iterator[Violation]:
    """Yield what is wrong with the connections: nodes that nothing uses, several inputs, no output."""
    if len(graph.input) != 1:
        message = f'the graph has {len(graph.input)} inputs, expected the voxel features alone; each becomes '
        yield Violation('', 'input', 'graph-input', message + 'an input of the engine')
    produced = {layer.output for layer in layers}
    for entry in graph.output:
        if entry.name not in produced:
            yield Violation(
                '', entry.name, 'graph-output', f'graph output {entry.name!r} is given by no node'
            )
    if len(graph.output) != 1:
        message = f'the graph has {len(graph.output)} outputs, expected the dense map alone'
        yield Violation('', 'output', 'graph-output', message)
    used = {entry.name for entry in graph.output} | {name for layer in layers for name in layer.inputs}
    for layer in layers:
        if layer.output in layer.inputs:
            message = f'tensor {layer.output!r} is its input and its output'
            yield Violation(layer.name, layer.output, 'self-loop', message)
        elif layer.output not in used:
            message = (
                f'its output {layer.output!r} is used by no node: the graph is disconnected, what follows '
                f'takes another tensor. Something between was not traced (BatchNorm that is not folded?)'
            )
            yield Violation(layer.name, layer.output, 'disconnected', message)
    for entry in graph.input:
        if entry.name not in used:
            yield Violation('', entry.name, 'disconnected', f'graph input {entry.name!r} is used by no node')


def type_rules(graph: onnx.GraphProto) -> Iterator[Violation]:
    """Yield inputs and outputs of the graph that do not hold the halves with which the engine computes."""
    for entry in (*graph.input, *graph.output):
        elem_type = entry.type.tensor_type.elem_type
        if elem_type != onnx.TensorProto.FLOAT16:
            message = f'{entry.name!r} is {type_name(elem_type)}, expected FLOAT16; the engine does not look'
            is_a_type = elem_type in onnx.TensorProto.DataType.values() and elem_type != 0
            yield Violation('', entry.name, 'tensor-type', message, WARNING if is_a_type else ERROR)


class Walk:
    """Follows tensors through the graph in file order: `violations` did not fit, `flows` are all tensors."""

    def __init__(self, graph: onnx.GraphProto, layers: list[Layer], max_voxels: int | None) -> None:
        """Walk; `max_voxels` are the most voxels of a sweep, None: the usual number, as a warning."""
        self.violations: list[Violation] = []
        self.max_voxels = max_voxels
        self.flows: dict[str, Flow] = {entry.name: Flow(sites='input') for entry in graph.input}
        self.rulebooks: dict[str, tuple[Layer, Flow]] = {}
        self.consumers: dict[str, list[Layer]] = {}
        for layer in layers:
            for name in layer.inputs:
                self.consumers.setdefault(name, []).append(layer)
        steps = {
            'SparseConvolution': self._convolution,
            'Add': self._add,
            'QuantAdd': self._add,
            'Relu': lambda _, flow: flow,
            'ScatterDense': self._scatter,
            'Transpose': self._transpose,
            'Reshape': self._reshape,
        }
        for layer in layers:
            flows = [self.flows.get(name, Flow()) for name in layer.inputs]
            self.flows[layer.output] = Flow()
            if len(flows) == (2 if layer.op_type in ('Add', 'QuantAdd') else 1):
                self._kind(layer, flows)
                self.flows[layer.output] = steps[layer.op_type](layer, *flows)
            self._stored_range(layer)

    def _report(self, layer: Layer, attribute: str, rule: str, message: str, severity: str = ERROR) -> None:
        self.violations.append(Violation(layer.name, attribute, rule, message, severity))

    def _kind(self, layer: Layer, flows: list[Flow]) -> None:
        """Report inputs of another kind than the operator takes."""
        dense = layer.op_type in ('Transpose', 'Reshape')
        kinds = {False: 'active sites', True: 'a dense tensor'}
        for flow in flows:
            if flow.dense != dense:
                message = f'takes {kinds[dense]}, its input is {kinds[flow.dense]}'
                self._report(layer, layer.inputs[0], 'wrong-kind', message)

    # ---- sparse nodes

    def _convolution(self, layer: Layer, flow: Flow) -> Flow:
        weight, said = layer.weight, layer.written['input_spatial_shape']
        if weight.ndim == 5 and flow.channels and weight.shape[4] != flow.channels:
            takes = f'weight {list(weight.shape)} takes {weight.shape[4]} channels'
            self._report(layer, 'weight', 'weight-shape', f'{takes}, its input has {flow.channels}')
        grid = flow.grid or said
        if said and grid != said:
            message = f'input_spatial_shape={list(said)}, its input is on {list(grid)}'
            self._report(layer, 'input_spatial_shape', 'spatial-shape', message)
        flow = dataclasses.replace(flow, grid=grid)
        result = self._target(layer, flow)
        said = layer.written['output_spatial_shape']
        if said and result.grid and result.grid != said:
            message = (
                f'output_spatial_shape={list(said)}, but {self._geometry(layer)} on {list(grid)} give '
                f'{list(result.grid)}; the engine never reads it and uses the latter'
            )
            self._report(layer, 'output_spatial_shape', 'spatial-shape', message)
        self._rulebook(layer, flow)
        self._room(layer, result)
        channels = weight.shape[0] if weight.ndim == 5 else 0
        return dataclasses.replace(result, channels=channels, shape=(), dense=False)

    def _geometry(self, layer: Layer) -> str:
        if layer.values['subm']:
            return f'kernel_size {list(layer.values["kernel_size"])} (submanifold)'
        return ', '.join(f'{name} {list(layer.values[name])}' for name in TRIPLES)

    def _target(self, layer: Layer, flow: Flow) -> Flow:
        """Return sites and grid of a convolution's output."""
        if layer.values['inverse']:
            first = self.rulebooks.get(layer.values['rulebook'])
            if first is not None:  # back to the input of the one with its rulebook
                return first[1]
            message = (
                f'inverse convolution with rulebook {layer.values["rulebook"]!r}, which no convolution '
                f'before it has: the engine does not know which sites to go back to'
            )
            self._report(layer, 'rulebook', 'rulebook', message)
            return Flow(sites=layer.name)
        if layer.values['subm']:
            return flow
        values = [layer.values[name] for name in TRIPLES]
        if len(flow.grid) != 3 or any(len(triple) != 3 for triple in values) or 0 in values[1]:
            return Flow(sites=layer.name)
        grid = dense_output_shape(flow.grid, *values)
        if min(grid) < 1:
            message = f'{self._geometry(layer)} on {list(flow.grid)} leave {list(grid)} cells'
            self._report(layer, 'kernel_size', 'spatial-shape', message)
        return Flow(grid=grid, sites=layer.name)

    def _rulebook(self, layer: Layer, flow: Flow) -> None:
        """Report convolutions that share a rulebook and do not have the same neighbours."""
        key = layer.values['rulebook']
        if not key or layer.values['inverse']:
            return
        first, where = self.rulebooks.setdefault(key, (layer, flow))
        names = ('kernel_size', 'dilation', 'subm', *(() if layer.values['subm'] else ('stride', 'padding')))
        differs = [name for name in names if first.values[name] != layer.values[name]]
        if where.sites and flow.sites and where.sites != flow.sites:
            differs.append('the set of active sites')
        if differs:
            message = (
                f'shares rulebook {key!r} with {first.name}, which has another {", another ".join(differs)}; '
                f'the engine uses the neighbours of {first.name} for both'
            )
            self._report(layer, 'rulebook', 'rulebook', message)

    def _room(self, layer: Layer, result: Flow) -> None:
        """Report an output bound that the expected number of active sites exceeds."""
        bound, cells = layer.values['output_bound'], math.prod(result.grid) if result.grid else math.inf
        room = 'the engine has no room for more active sites than that'
        rows = layer.written['output_shape'][:1]
        if rows and rows[0] > bound > 0:
            message = f'output_bound={bound}, but {rows[0]} sites were active when it was traced; {room}'
            self._report(layer, 'output_bound', 'output-bound', message)
            return
        expected = min(USUAL_MAX_VOXELS if self.max_voxels is None else self.max_voxels, cells)
        if 0 < bound < expected:
            source = 'of the usual test configs' if self.max_voxels is None else 'of --max-voxels'
            message = f'output_bound={bound} is less than the {expected} voxels {source}; {room}'
            if result.sites != 'input':
                message += ' (a strided level may have more sites than there are voxels: 1.6 times on a real '
                message += 'sweep)'
            sure = self.max_voxels is not None and result.sites == 'input'
            self._report(layer, 'output_bound', 'output-bound', message, ERROR if sure else WARNING)

    def _add(self, layer: Layer, first: Flow, second: Flow) -> Flow:
        if first.channels and second.channels and first.channels != second.channels:
            message = f'adds {first.channels} channels to {second.channels}'
            self._report(layer, '', 'add-shape', message)
        if first.sites and second.sites and first.sites != second.sites:
            message = 'its inputs are not on the same active sites; the engine adds row by row'
            self._report(layer, '', 'add-shape', message)
        return first

    def _stored_range(self, layer: Layer) -> None:
        """Report an output stored as int8 for a consumer that has no scale for it."""
        if layer.values.get('output_precision') != INT8:
            return
        seen, tensors = set(), [layer.output]
        while tensors:
            for consumer in self.consumers.get(tensors.pop(), []):
                if consumer.op_type == 'Relu' and consumer.output not in seen:
                    seen.add(consumer.output)
                    tensors.append(consumer.output)
                ranges = input_ranges(consumer)
                missing = [name for name, value in ranges.items() if range_problem(value)]
                if missing and consumer.values.get('precision') != INT8:
                    message = (
                        f'{missing[0]} is unset, but {layer.name} stores its output as int8: no scale for it'
                    )
                    self._report(consumer, missing[0], 'amax', message)

    # ---- dense nodes

    def _scatter(self, layer: Layer, flow: Flow) -> Flow:
        grid, shape = layer.values['input_spatial_shape'], layer.values['output_shape']
        if grid and flow.grid and grid != flow.grid:
            message = (
                f'input_spatial_shape={list(grid)}, its input is on {list(flow.grid)}; the engine '
                f'scatters outside the tensor or leaves holes'
            )
            self._report(layer, 'input_spatial_shape', 'spatial-shape', message)
        expected = (1, flow.channels or sum(shape[1:2]), *grid)
        if shape and grid and shape != expected:
            message = f'output_shape={list(shape)}, expected (1, C, grid) = {list(expected)}'
            self._report(layer, 'output_shape', 'spatial-shape', message)
        return Flow(flow.channels, grid or flow.grid, flow.sites, shape, True)

    def _transpose(self, layer: Layer, flow: Flow) -> Flow:
        dims = layer.values['dims']
        if not dims or not flow.shape:
            return Flow(dense=True)
        if sorted(dims) != list(range(len(flow.shape))):
            message = f'dims={list(dims)} is not a permutation of the axes of {list(flow.shape)}'
            self._report(layer, 'dims', 'attribute-value', message)
            return Flow(dense=True)
        return dataclasses.replace(flow, shape=tuple(flow.shape[axis] for axis in dims))

    def _reshape(self, layer: Layer, flow: Flow) -> Flow:
        dims = layer.values['dims']
        if dims and flow.shape and math.prod(dims) != math.prod(flow.shape):
            message = f'dims={list(dims)} has {math.prod(dims)} values, its input {list(flow.shape)} has '
            self._report(layer, 'dims', 'attribute-value', f'{message}{math.prod(flow.shape)}')
        return dataclasses.replace(flow, shape=dims)
