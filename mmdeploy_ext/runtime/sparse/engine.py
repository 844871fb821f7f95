"""An engine for sparse graphs in numpy: slow, plain, and the reference of others, within tolerances.

N sites read, M written, C channels, I, O of a convolution, K offsets of its kernel (k0, k1, k2), last axis
fastest, axes in the order of the graph; H, W of the bird's-eye view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import DataError, ExportError
from mmdeploy_ext.runtime.sparse import ir
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.runtime.sparse.ir import Node, SparseGraph
    from mmdeploy_ext.runtime.sparse.rulebook import Rulebook

    Transform = Callable[
        [Node, tuple[np.ndarray, ...], np.ndarray | None], tuple[tuple[np.ndarray, ...], np.ndarray | None]
    ]
    """(node, inputs, weight) -> inputs and weight to compute with."""


def run(
    graph: SparseGraph,
    coordinates: np.ndarray,
    features: np.ndarray,
    observe: Callable[[str, np.ndarray], None] | None = None,
    transform: Transform | None = None,
    rulebook: Rulebook | None = None,
) -> np.ndarray:
    """Run a graph on one sweep; return (1, C, H, W) float32.

    Args:
        graph: traced or folded; float16 weights are computed in float32.
        coordinates: (N, 4) integers, sample 0 and axes in the graph's order, distinct.
        features: (N, `graph.in_channels`).
        observe: called after every node with its name and output, (M, C) or dense.
        transform: changes inputs and weight before every node, for fake quantisation.
        rulebook: of these coordinates; None: built.

    Raises:
        DataError: unfitting voxels or features.
        ExportError: a graph that it cannot run, see `plan_of`.
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
    """Features as contiguous float32 (rows, channels); DataError: another shape, or not finite."""
    features = np.asarray(features)
    if features.shape != (rows, channels):
        raise DataError(
            f'features: got shape {features.shape}, expected ({rows}, {channels}): one row per voxel, '
            'with the width of the export'
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
    """(M, O) float32: sum over offsets of features (N, I) times weight (O, k0, k1, k2, I).

    `table` (K, M) has rows of the features; numbers from N on stand for none.
    """
    kernels = np.asarray(weight, np.float32).transpose(1, 2, 3, 4, 0)
    kernels = kernels.reshape(-1, weight.shape[4], weight.shape[0])
    sums = np.zeros((table.shape[1], weight.shape[0]), np.float32)
    for rows_in, kernel in zip(table, kernels, strict=True):
        rows_out = np.flatnonzero(rows_in < len(features))
        sums[rows_out] += features[rows_in[rows_out]] @ kernel
    return sums
