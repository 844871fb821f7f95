"""The sparse graph: the computation of a LiDAR backbone, before it is written as a file. Needs numpy only.

N active sites of a level, C, I, O channels, k0, k1, k2 kernel, d0, d1, d2 grid, H, W bird's-eye view. Spatial
axes are in the graph's order, 'xyz' or 'zyx'. Coordinates are (N, 4) int32: sample, axes. Weights are (O, k0,
k1, k2, I), correlation as in torch. amax is the absolute value that int8 maps to 127.
"""

import collections
import dataclasses
from typing import ClassVar

import numpy as np

Triple = tuple[int, int, int]
ORDERS = ('xyz', 'zyx')


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique, see `renumber`.
        module: path of its module, e.g. 'encoder_layers.encoder_layer1.0.conv1'; '' if unknown.
        inputs, output: ids of tensors.
    """

    op_type: ClassVar[str]

    name: str
    module: str
    inputs: tuple[str, ...]
    output: str

    def __init_subclass__(cls) -> None:
        cls.op_type = cls.__name__


@dataclasses.dataclass(frozen=True)
class BatchNorm(Node):
    """Batch normalisation over active sites, before folding; arrays (C,) float32."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


@dataclasses.dataclass(frozen=True)
class SparseConvolution(Node):
    """A sparse convolution, with bias and ReLU once folded.

    Attributes:
        weight: (O, k0, k1, k2, I), also if inverse or transposed; float32, or float16 if folded in fp16 or
            read from a libspconv file.
        bias: (O,) of the same dtype, or None.
        kernel_size, stride, padding, dilation, output_padding: per axis; submanifold ones centre the kernel
            and ignore stride and padding.
        subm: submanifold: output sites are input sites.
        input_spatial_shape, output_spatial_shape: grid per axis.
        inverse: spconv's inverse convolution, back to the input sites of its rulebook; not in portable files.
        transposed: spconv's transposed convolution; not written, since libspconv computes an ordinary one.
        groups: not written above 1, since libspconv computes one.
        rulebook: key of shared neighbours (spconv's indice_key), or None.
        activation: 'ReLU' or 'None'.
        input_rows, output_rows: active sites of the trace; informative.
        output_bound: most output sites of an engine.
        precision: of the kernel, 'fp16' or 'int8'; '' counts as fp16.
        output_precision: of its result, likewise.
        input_range: amax of its input, or None.
        weight_ranges: (O,) amax per output channel, or None.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    kernel_size: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    output_padding: Triple
    subm: bool
    input_spatial_shape: Triple
    output_spatial_shape: Triple
    inverse: bool = False
    transposed: bool = False
    groups: int = 1
    rulebook: str | None = None
    activation: str = 'None'
    input_rows: int = 1
    output_rows: int = 1
    output_bound: int = 200000
    precision: str = ''
    output_precision: str = ''
    input_range: float | None = None
    weight_ranges: np.ndarray | None = None

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[4])

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])


TRIPLES = tuple(field.name for field in dataclasses.fields(SparseConvolution) if field.type == Triple)


@dataclasses.dataclass(frozen=True)
class Add(Node):
    """Sum of two tensors on the same active sites."""

    precision: str = ''
    output_precision: str = ''
    input_range: float | None = None


@dataclasses.dataclass(frozen=True)
class Relu(Node):
    """max(x, 0) on active sites."""


@dataclasses.dataclass(frozen=True)
class ScatterDense(Node):
    """Active sites into a dense tensor of `output_shape` (1, C, d0, d1, d2), zero elsewhere."""

    spatial_shape: Triple
    output_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transpose(Node):
    """Output axis i is input axis dims[i]."""

    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reshape(Node):
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SparseGraph:
    """A network of batch 1; tensor '0' is the voxel features. Compare with `differences`, not `==`.

    Attributes:
        order: axes of coordinates, weights and shapes.
        spatial_shape: grid per axis.
        in_channels: features per voxel.
        output, output_shape: id and (1, C, H, W) of the result.
        input_rows: voxels of the trace.
    """

    nodes: tuple[Node, ...]
    order: str
    spatial_shape: Triple
    in_channels: int
    output: str
    output_shape: tuple[int, ...]
    input_rows: int = 1

    def convolutions(self) -> tuple[SparseConvolution, ...]:
        return tuple(node for node in self.nodes if isinstance(node, SparseConvolution))


PREFIXES = {'BatchNorm': 'bn', 'SparseConvolution': 'conv', 'ScatterDense': 'scatter'}
"""Operation -> prefix of node names; else the operation in small letters."""


def renumber(graph: SparseGraph) -> SparseGraph:
    """Name nodes per operation from 0 (conv0, conv1, add0, ...), tensors from '1'."""
    ids, counts, nodes = {'0': '0'}, collections.Counter(), []
    for node in graph.nodes:
        inputs, kind = tuple(ids[name] for name in node.inputs), node.op_type
        ids[node.output] = str(len(ids))
        name = f'{PREFIXES.get(kind, kind.lower())}{counts[kind]}'
        counts[kind] += 1
        nodes.append(dataclasses.replace(node, name=name, inputs=inputs, output=ids[node.output]))
    return dataclasses.replace(graph, nodes=tuple(nodes), output=ids[graph.output])


def prune(graph: SparseGraph) -> SparseGraph:
    needed, nodes = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(reversed(nodes)))


def differences(graph: SparseGraph, other_graph: SparseGraph) -> list[str]:
    """Differences of two graphs in words; [] if equal, arrays bit for bit."""
    lines = []
    for field in dataclasses.fields(SparseGraph):
        value, other_value = getattr(graph, field.name), getattr(other_graph, field.name)
        if field.name != 'nodes' and value != other_value:
            lines.append(f'{field.name}: {value!r} and {other_value!r}')
    if len(graph.nodes) != len(other_graph.nodes):
        lines.append(f'nodes: {len(graph.nodes)} and {len(other_graph.nodes)}')
    for node, other_node in zip(graph.nodes, other_graph.nodes, strict=False):
        if type(node) is not type(other_node):
            lines.append(f'{node.name}: {node.op_type} and {other_node.op_type}')
            continue
        for field in dataclasses.fields(node):
            value, other_value = getattr(node, field.name), getattr(other_node, field.name)
            if not _is_equal(value, other_value):
                lines.append(f'{node.name}.{field.name}: {_brief(value)} and {_brief(other_value)}')
    return lines


def _is_equal(value: object, other_value: object) -> bool:
    if isinstance(value, np.ndarray) and isinstance(other_value, np.ndarray):
        same_type = (value.dtype, value.shape) == (other_value.dtype, other_value.shape)
        return same_type and value.tobytes() == other_value.tobytes()
    return type(value) is type(other_value) and value == other_value


def _brief(value: object) -> str:
    return f'{value.dtype} {value.shape}' if isinstance(value, np.ndarray) else repr(value)
