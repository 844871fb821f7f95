"""An engine for sparse graphs in numpy: slow, plain, and the reference of every other one. Needs no torch.

Other engines are compared with it within tolerances: the order in which float32 numbers are added is no part
of the contract.

Glossary: N sites (rows) that a node reads, M that it writes, C channels, I and O those of a convolution, K
offsets of its kernel (k0, k1, k2), the last axis fastest, in the order of axes that the graph names ('xyz' or
'zyx'); H, W rows and columns of the bird's-eye view: which of them x is, the model decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import DataError, ExportError
from mmdeploy_ext.sparse import ir
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.sparse.rulebook import Rulebook

    Transform = Callable[
        [Node, tuple[np.ndarray, ...], np.ndarray | None], tuple[tuple[np.ndarray, ...], np.ndarray | None]
    ]
    """Function of a node, its inputs and weight, which returns the inputs and weight to compute with."""


def run(
    graph: SparseGraph,
    coordinates: np.ndarray,
    features: np.ndarray,
    observe: Callable[[str, np.ndarray], None] | None = None,
    transform: Transform | None = None,
    rulebook: Rulebook | None = None,
) -> np.ndarray:
    """Run a graph on one sweep; return (1, C, H, W) float32.

    C is the number of channels of the view, in which the cells of the vertical axis may be channels.

    Args:
        graph: traced, or folded, with its batch normalisation in the convolutions, see `fold.py`; float16
            weights are computed with in float32.
        coordinates: (N, 4) integers, sample, which is 0, and axes in the graph's order, every voxel once; N
            may be 0. `rulebook.build` refuses others.
        features: (N, `graph.in_channels`) of the voxels, in the order of the coordinates.
        observe: called after every node with its name and its output: (M, C) of a sparse tensor, whose rows
            are the sites of `rulebook.level(node.output)`, or a dense one. It must not change the output.
            With None nothing is called.
        transform: called before every node with the node, its inputs and its weight (None without one);
            returns the inputs and the weight to compute with, for fake quantisation.
        rulebook: rulebook of these coordinates, in this order, for this graph; the coordinates then are
            neither read nor checked. None: it is built.

    Raises:
        DataError: voxels that the graph cannot take, or features of another shape or not finite.
        ExportError: a graph that it cannot run, such as one with another activation than ReLU (`plan_of`).
    """
    plan = plan_of(graph)
    rulebook = build(plan, coordinates) if rulebook is None else rulebook
    tensors = {'0': checked_features(features, len(rulebook.levels[0]), graph.in_channels)}
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last_use[graph.output] = len(graph.nodes)
    for index, node in enumerate(graph.nodes):
        inputs = tuple(tensors[name] for name in node.inputs)
        weight = node.weight if isinstance(node, ir.SparseConvolution) else None
        if transform is not None:
            inputs, weight = transform(node, inputs, weight)
        table = rulebook.tables[plan.table_of[node.name]] if node.name in plan.table_of else None
        tensors[node.output] = _compute(node, inputs, weight, table, rulebook)
        if observe is not None:
            observe(node.name, tensors[node.output])
        for name in node.inputs:
            if last_use[name] == index:
                tensors.pop(name, None)
    return tensors[graph.output]


def checked_features(features: np.ndarray, rows: int, channels: int) -> np.ndarray:
    """Return features as contiguous float32, (rows, channels).

    Args:
        features: numbers of any dtype.
        rows: number of voxels.
        channels: features per voxel of the network.

    Raises:
        DataError: another shape, or values that are not finite.
    """
    features = np.asarray(features)
    if features.shape != (rows, channels):
        raise DataError(
            f'features: got shape {features.shape}, expected ({rows}, {channels}): one row per voxel, '
            f'as wide as the network was exported'
        )
    features = np.ascontiguousarray(features, np.float32)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise DataError(f'features: row {row} is {features[row].tolist()}; expected finite values')
    return features


def _compute(
    node: Node,
    inputs: tuple[np.ndarray, ...],
    weight: np.ndarray | None,
    table: np.ndarray | None,
    rulebook: Rulebook,
) -> np.ndarray:
    """Return the output of a node; `weight` is None for what is no convolution, so is `table`."""
    if isinstance(node, ir.SparseConvolution):
        features = gathered(inputs[0], weight, table)
        if node.bias is not None:
            features += np.asarray(node.bias, np.float32)
        return np.maximum(features, np.float32(0), out=features) if node.activation == 'ReLU' else features
    if isinstance(node, ir.BatchNorm):
        scale = node.gamma / np.sqrt(node.var + np.float32(node.eps))
        return ((inputs[0] - node.mean) * scale + node.beta).astype(np.float32)
    if isinstance(node, ir.Add):
        return inputs[0] + inputs[1]
    if isinstance(node, ir.Relu):
        return np.maximum(inputs[0], np.float32(0))
    if isinstance(node, ir.ScatterDense):
        dense = np.zeros(node.output_shape, np.float32)
        _, a, b, c = rulebook.level(node.inputs[0]).coordinates.T
        dense[0][:, a, b, c] = inputs[0].T
        return dense
    if isinstance(node, ir.Transpose):
        return np.transpose(inputs[0], node.dims)
    if isinstance(node, ir.Reshape):
        return np.ascontiguousarray(inputs[0]).reshape(node.dims)
    raise ExportError(f'{node.name}: the engine has no operation {node.op_type}')


def gathered(features: np.ndarray, weight: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return (M, O) float32: for each row the sum over offsets of features times the weight of the offset.

    Args:
        features: (N, I) float32.
        weight: (O, k0, k1, k2, I).
        table: (K, M) rows of the features, K = k0*k1*k2 in row-major order; numbers from N on stand for no
            neighbour, and none is negative.
    """
    kernels = np.asarray(weight, np.float32).transpose(1, 2, 3, 4, 0)
    kernels = kernels.reshape(-1, weight.shape[4], weight.shape[0])
    sums = np.zeros((table.shape[1], weight.shape[0]), np.float32)
    for rows_in, kernel in zip(table, kernels, strict=True):
        rows_out = np.flatnonzero(rows_in < len(features))
        sums[rows_out] += features[rows_in[rows_out]] @ kernel
    return sums
