"""Batch normalisation and ReLU folded into sparse convolutions, bit for bit as the reference does."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection

import numpy as np

from mmdeploy_ext.base.errors import ExportError, UsageError
from mmdeploy_ext.runtime.sparse.ir import (
    ORDERS,
    TRIPLES,
    BatchNorm,
    Node,
    Relu,
    ScatterDense,
    SparseConvolution,
    SparseGraph,
    Transpose,
    renumber,
)

# A sparse graph in the other coordinate order.


REVERSED = (0, 1, 4, 3, 2)
"""Axes of (1, C, d0, d1, d2) in the other order; its own inverse."""


def reorder(graph: SparseGraph, order: str) -> SparseGraph:
    """The same network on coordinates in another axis order; the dense output stays.

    Kernels are permuted, never mirrored. A Transpose behind each ScatterDense takes up the change. Names and
    ids are counted anew.

    Source: ALGORITHM.md of the tests' golden files, section 4.
    """
    if order not in ORDERS:
        raise UsageError(f'order={order!r} is unknown; expected one of {", ".join(ORDERS)}')
    if order == graph.order:
        return graph
    nodes: list[Node] = []
    names: dict[str, str] = {}
    scatters: dict[str, ScatterDense] = {}
    for node in graph.nodes:
        source = scatters.get(node.inputs[0])
        node = dataclasses.replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        if source is None:
            if isinstance(node, ScatterDense):
                scatters[node.output] = node
                shape = tuple(node.output_shape[axis] for axis in REVERSED)
                node = dataclasses.replace(node, spatial_shape=node.spatial_shape[::-1], output_shape=shape)
            elif isinstance(node, SparseConvolution):
                triples = {name: getattr(node, name)[::-1] for name in TRIPLES}
                weight = np.ascontiguousarray(node.weight.transpose(0, 3, 2, 1, 4))
                node = dataclasses.replace(node, weight=weight, **triples)
            nodes.append(node)
        elif isinstance(node, Transpose):
            dims = tuple(REVERSED[axis] for axis in node.dims)
            if dims == tuple(range(5)):
                names[node.output] = node.inputs[0]
            else:
                nodes.append(dataclasses.replace(node, dims=dims))
        else:
            restored = _restored_once(nodes, source)
            nodes.append(dataclasses.replace(node, inputs=(restored, *node.inputs[1:])))
    if graph.output in scatters:
        names[graph.output] = _restored_once(nodes, scatters[graph.output])
    changes = dict(nodes=tuple(nodes), order=order, spatial_shape=graph.spatial_shape[::-1])
    return renumber(dataclasses.replace(graph, output=names.get(graph.output, graph.output), **changes))


def _restored_once(nodes: list[Node], scatter: ScatterDense) -> str:
    output = f'{scatter.output} restored'
    restored = Transpose('', scatter.module, (scatter.output,), output, REVERSED)
    if restored not in nodes:
        nodes.append(restored)
    return output


PRECISIONS = ('fp32', 'fp16')


def fold(graph: SparseGraph, precision: str = 'fp32', fp16_modules: Collection[str] = ()) -> SparseGraph:
    """Fold every BatchNorm, and fuse every ReLU into the convolution before it; a second run changes nothing.

    Convolutions get a bias, which libspconv reads unchecked. Names and tensor ids are counted anew. 'fp32'
    folds in float32 (NVIDIA's PTQ path), 'fp16' rounds after every operation (NVIDIA's plain exporters after
    `model.half()`): 45 % of the weights differ, by up to 3 ulp. `fp16_modules` are always folded in fp16.

    Source: ALGORITHM.md of the tests' golden files, section 3.

    Raises:
        ExportError: a BatchNorm that does not directly follow a convolution, or a shared output.
    """
    if precision not in PRECISIONS:
        raise UsageError(f'fold={precision!r} is unknown; expected one of {", ".join(PRECISIONS)}')

    def is_half(node: Node | None) -> bool:
        return precision == 'fp16' or (node is not None and node.module in fp16_modules)

    names = [graph.output, *(name for node in graph.nodes for name in node.inputs)]
    uses = collections.Counter(names)
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        if isinstance(node, SparseConvolution) and is_half(node):
            bias = None if node.bias is None else node.bias.astype(np.float16)
            node = dataclasses.replace(node, weight=node.weight.astype(np.float16), bias=bias)
        nodes[node.output] = node
    replaced: dict[str, str] = {}
    for node in graph.nodes:
        name = replaced.get(node.inputs[0], node.inputs[0])
        before = nodes.get(name)
        if isinstance(node, BatchNorm):
            dtype = np.float16 if is_half(before) else np.float32
            nodes[name] = _with_norm(before, node, uses[node.inputs[0]], dtype)
        elif isinstance(node, Relu) and _takes_relu(before) and uses[node.inputs[0]] == 1:
            nodes[name] = dataclasses.replace(before, activation='ReLU')
        else:
            continue
        replaced[node.output] = name
        del nodes[node.output]
    folded = []
    for node in nodes.values():
        if isinstance(node, SparseConvolution) and node.bias is None:
            node = dataclasses.replace(node, bias=np.zeros(node.out_channels, node.weight.dtype))
        inputs = tuple(replaced.get(name, name) for name in node.inputs)
        folded.append(dataclasses.replace(node, inputs=inputs))
    output = replaced.get(graph.output, graph.output)
    return renumber(dataclasses.replace(graph, nodes=tuple(folded), output=output))


def _takes_relu(node: Node | None) -> bool:
    return isinstance(node, SparseConvolution) and node.activation == 'None'


def _with_norm(node: Node | None, norm: BatchNorm, uses: int, dtype: type[np.floating]) -> SparseConvolution:
    if not _takes_relu(node):
        got = 'the voxels' if node is None else f'{node.op_type} ({node.module})'
        if isinstance(node, SparseConvolution):
            got = f'the ReLU of {node.module}'
        raise ExportError(
            f'{norm.module}: batch normalisation follows {got}, where it cannot be folded; only directly '
            f"after a convolution it can, i.e. order=('conv', 'norm', 'act')"
        )
    if uses != 1:
        raise ExportError(
            f'{norm.module}: batch normalisation of {node.module}, whose output is used elsewhere too, '
            f'cannot be folded into it'
        )
    gamma, beta, mean, var = (array.astype(dtype) for array in (norm.gamma, norm.beta, norm.mean, norm.var))
    # torch adds a Python number to a half tensor in float32 and rounds once; the same goes for rsqrt
    var = (var.astype(np.float32) + np.float32(norm.eps)).astype(dtype)
    root = (np.float32(1) / np.sqrt(var.astype(np.float32))).astype(dtype)
    weight = node.weight * (gamma * root)[:, None, None, None, None]
    bias = np.zeros_like(beta) if node.bias is None else node.bias
    return dataclasses.replace(node, weight=weight, bias=(bias - mean) * root * gamma + beta)
