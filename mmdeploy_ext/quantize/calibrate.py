"""Ranges of a sparse graph, measured on sweeps on a CPU: post-training quantisation.

Source: ALGORITHM.md section 6. Differs in: as many sweeps as asked (the reference runs one more), and every
quantiser is measured, also those of layers that the reference then computes in fp16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import DataError, UsageError
from mmdeploy_ext.quantize import PERCENTILE
from mmdeploy_ext.quantize.calibrators import calibrator, title, weight_amax
from mmdeploy_ext.sparse import engine
from mmdeploy_ext.sparse.ir import Add, SparseConvolution
from mmdeploy_ext.sparse.ranges import NodeRange, Ranges, graph_digest, quantised, weight_norm

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from mmdeploy_ext.quantize.calibrators import Calibrator
    from mmdeploy_ext.sparse.ir import SparseGraph

    Sweep = tuple[np.ndarray, np.ndarray]
    """(N, C) float features, (N, 4) int32 coordinates in the graph's order."""


def calibrate_sweeps(
    graph: SparseGraph,
    sweeps: Iterable[Sweep],
    method: str = 'mse',
    *,
    percentile: float = PERCENTILE,
    add_method: str | None = None,
    unfolded: Mapping[str, np.ndarray] | None = None,
    source: str = 'sweeps',
    checkpoint_sha256: str = '',
) -> Ranges:
    """Measure the ranges of all inputs, and take those of the weights.

    Args:
        graph: folded in fp32, with its weights.
        sweeps: (features (N, C), coordinates (N, 4)) each, coordinates in the graph's order.
        method: of inputs: 'mse', 'percentile' or 'max'.
        percentile: of |x|, for the method of that name.
        add_method: of residual additions, None: as `method`. The reference has 'max' for CenterPoint.
        unfolded: node name -> kernel whose ranges are taken instead of the folded one's: `before_folding`.
        source: what the sweeps are, for the file.
        checkpoint_sha256: of the checkpoint file, for the file.

    Raises:
        UsageError: an unknown method, a graph that is not folded.
        DataError: no sweep; values that are not finite; an input that was 0 in all sweeps.
    """
    nodes = quantised(graph)
    collectors = {
        node.name: calibrator((add_method or method) if isinstance(node, Add) else method, percentile)
        for node in nodes
    }
    count = 0
    for count, sweep in enumerate(tracked(sweeps, 'calibrating'), 1):
        _collect(graph, sweep, collectors, f'sweep {count} of {source}')
    if count == 0:
        raise DataError(f'{source}: has no sweep to calibrate on; give a folder or infos that have some')
    found = {}
    for node in nodes:
        amax = collectors[node.name].amax()
        if amax == 0:
            raise DataError(
                f'{source}: the input of {node.name} ({node.module}) was 0 in all {count} sweeps, which '
                f'gives no range; give sweeps that reach it, or check the weights'
            )
        kernel = ()
        if isinstance(node, SparseConvolution):
            kernel = _weights(node, (unfolded or {}).get(node.name, node.weight)), weight_norm(node)
        found[node.name] = NodeRange(node.module, float(np.float32(amax)), *kernel)
    name = title(method, percentile)
    if add_method and add_method != method:
        name += f' (additions: {title(add_method, percentile)})'
    return Ranges(found, name, source, count, graph_digest(graph), checkpoint_sha256)


def before_folding(
    traced: SparseGraph, folded: SparseGraph, modules: Collection[str]
) -> dict[str, np.ndarray]:
    """Return node name -> kernel before batch normalisation was folded into it, of some modules' paths.

    The reference takes the weight ranges of CenterPoint's `conv_input.0` from that kernel: its normalisation
    is folded only when the file is written. Every other range is of the folded kernel. A path that no
    convolution has is a UsageError.
    """
    kernels = {node.module: node.weight for node in traced.convolutions()}
    for module in modules:
        if module not in kernels:
            raise UsageError(f'{module}: no convolution of the graph comes from this module')
    return {node.name: kernels[node.module] for node in folded.convolutions() if node.module in modules}


def tracked(items: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the items, with a bar on stderr where that is a terminal."""
    return cli.tracked(items, len(items) if hasattr(items, '__len__') else None, what)


def _weights(node: SparseConvolution, kernel: np.ndarray) -> tuple[float, ...]:
    try:
        return weight_amax(kernel)
    except ValueError as error:
        raise UsageError(
            f'{node.name} ({node.module}): of its weights, {error}; check the checkpoint'
        ) from error


def _collect(graph: SparseGraph, sweep: Sweep, collectors: Mapping[str, Calibrator], where: str) -> None:
    def listen(node, inputs, weight):  # noqa: ANN001, ANN202
        if node.name in collectors:
            try:
                # the two inputs of an addition share one quantiser
                for values in inputs:
                    collectors[node.name].collect(values)
            except ValueError as error:
                raise DataError(f'{where}: input of {node.name} ({node.module}): {error}') from error
        return inputs, weight

    features, coordinates = sweep
    engine.run(graph, coordinates, features, transform=listen)
