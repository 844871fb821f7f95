"""The sparse graph: what a LiDAR backbone computes, before it is written as a file. Needs numpy only.

There are two kinds of files: the libspconv dialect, the form of ONNX that NVIDIA's engine of that name reads,
and portable ones of standard operators. A rulebook is the table of pairs of input and output sites that a
sparse convolution multiplies, per element of its kernel.

Glossary: N active sites (voxels) of a level, C channels, O output and I input channels of a convolution, k0,
k1, k2 its kernel, d0, d1, d2 sizes of the grid, H, W cells of the bird's-eye view; the three spatial axes
are in coordinate order, which the graph names: 'xyz' or 'zyx'. Coordinates are int32 (N, 4): sample, then the
axes in that order. Weights are (O, k0, k1, k2, I), correlation as in torch (kernels are never mirrored). The
amax of a tensor is the absolute value that int8 maps to 127.
"""

import collections
import dataclasses
from typing import ClassVar

import numpy as np

Triple = tuple[int, int, int]
"""A number for each axis, in the order of the graph."""
ORDERS = ('xyz', 'zyx')
"""Orders of the spatial axes."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique; `renumber` makes conv0, add0, relu0, scatter0, transpose0, reshape0, ...; while a module
            is traced it is that of the output.
        module: path of the module that it comes from, e.g. 'encoder_layers.encoder_layer1.0.conv1'; '' if
            the file that it was read from does not say.
        inputs, output: ids of its tensors.
        op_type: name of the node's class, such as 'Add'.
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
    """Batch normalisation over active sites, only between tracing and folding.

    Factor `gamma`, shift `beta`, running `mean` and variance `var` are arrays (C,) float32; `eps` is added to
    the variance.
    """

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


@dataclasses.dataclass(frozen=True)
class SparseConvolution(Node):
    """A sparse convolution, submanifold or strided, with its bias and ReLU once they are folded.

    Attributes:
        weight: (O, k0, k1, k2, I), also of inverse and transposed convolutions; float32 of a traced module,
            float16 of one that was folded in fp16, or if it was read from a file of the libspconv dialect.
        bias: (O,) of the same type; None before folding if the module has none, or of a file that
            has none.
        kernel_size, stride, padding, dilation, output_padding: numbers per axis, as the module has them; a
            submanifold convolution centres its kernel and ignores stride and padding.
        subm: whether it is submanifold: the output sites are the input sites.
        input_spatial_shape, output_spatial_shape: grid sizes per axis.
        inverse: whether it is spconv's inverse convolution, whose output sites are the input sites of an
            earlier convolution with the same rulebook; portable files have none.
        transposed: whether it is spconv's transposed convolution, of which no file is written: libspconv's
            engine computes an ordinary one.
        groups: number of groups; no file is written of more than 1: libspconv's engine computes one.
        rulebook: key shared by convolutions with the same neighbours (spconv's indice_key); None if it shares
            them with no other.
        activation: 'ReLU' or 'None'.
        input_rows, output_rows: numbers of active sites when it was traced; no engine reads them.
        output_bound: largest number of output sites that an engine makes room for; the user or the module
            sets it.
        precision: type in which the kernel computes, 'fp16' or 'int8'; '' if the file has none, which engines
            take as fp16.
        output_precision: type of what it stores, likewise.
        input_range: amax of its input for int8; None if it was not calibrated.
        weight_ranges: (O,) amax per output channel for int8; None if it was not calibrated.
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
        """Number of input channels I."""
        return int(self.weight.shape[4])

    @property
    def out_channels(self) -> int:
        """Number of output channels O."""
        return int(self.weight.shape[0])


TRIPLES = tuple(field.name for field in dataclasses.fields(SparseConvolution) if field.type == Triple)
"""Fields of a convolution with a value per axis."""


@dataclasses.dataclass(frozen=True)
class Add(Node):
    """Sum of two tensors on the same active sites, in the order in which the module adds them.

    `precision` and `output_precision` are those of `SparseConvolution`.
    """

    precision: str = ''
    output_precision: str = ''
    input_range: float | None = None
    """amax that both inputs share."""


@dataclasses.dataclass(frozen=True)
class Relu(Node):
    """max(x, 0) on active sites."""


@dataclasses.dataclass(frozen=True)
class ScatterDense(Node):
    """Active sites of a grid of `spatial_shape` into a dense tensor of `output_shape` (1, C, d0, d1, d2).

    It is zero elsewhere.
    """

    spatial_shape: Triple
    output_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transpose(Node):
    """Axes of a dense tensor in another order: output axis i is input axis dims[i]."""

    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reshape(Node):
    """A dense tensor in the shape `dims`, all of whose sizes are positive in a traced graph."""

    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SparseGraph:
    """A whole network: nodes in the order in which they run, tensor '0' the voxel features. Its batch is 1.

    Two graphs are compared by `differences`; `==` fails on their arrays.

    Attributes:
        nodes: every node's inputs are '0' or outputs of nodes before it.
        order: axis order of coordinates, weights and shapes: 'xyz' or 'zyx'.
        spatial_shape: grid size per axis.
        in_channels: features per voxel.
        output, output_shape: id and (1, C, H, W) of the result.
        input_rows: number of voxels when it was traced.
    """

    nodes: tuple[Node, ...]
    order: str
    spatial_shape: Triple
    in_channels: int
    output: str
    output_shape: tuple[int, ...]
    input_rows: int = 1

    def convolutions(self) -> tuple[SparseConvolution, ...]:
        """Return the convolutions in order."""
        return tuple(node for node in self.nodes if isinstance(node, SparseConvolution))


PREFIXES = {'BatchNorm': 'bn', 'SparseConvolution': 'conv', 'ScatterDense': 'scatter'}
"""Operation -> beginning of the names of its nodes, unless that is its name in small letters."""


def renumber(graph: SparseGraph) -> SparseGraph:
    """Return the graph with names per operation from 0 (conv0, conv1, add0, ...), tensors from '1' on.

    KeyError: a node before one that gives its input.
    """
    ids, counts, nodes = {'0': '0'}, collections.Counter(), []
    for node in graph.nodes:
        inputs, kind = tuple(ids[name] for name in node.inputs), node.op_type
        ids[node.output] = str(len(ids))
        name = f'{PREFIXES.get(kind, kind.lower())}{counts[kind]}'
        counts[kind] += 1
        nodes.append(dataclasses.replace(node, name=name, inputs=inputs, output=ids[node.output]))
    return dataclasses.replace(graph, nodes=tuple(nodes), output=ids[graph.output])


def prune(graph: SparseGraph) -> SparseGraph:
    """Return the graph without nodes that its output does not need; names and ids stay."""
    needed, nodes = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(reversed(nodes)))


def differences(graph: SparseGraph, other_graph: SparseGraph) -> list[str]:
    """Return the differences of two graphs in words; an empty list if they are equal, arrays bit for bit.

    If one has more nodes, the surplus is counted, not described. Arrays are shown by type and shape: two that
    differ in values alone have the same text twice.
    """
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
