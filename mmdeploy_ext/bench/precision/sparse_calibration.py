"""Post-training quantisation of sparse graphs: ranges measured on sweeps, on a CPU.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion/qat (ptq.py, lean/quantize.py),
CUDA-CenterPoint/qat/tools/sparseconv_quantization.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.exporting.int8 import PERCENTILE, Calibration, tracked
from mmdeploy_ext.exporting.int8.calibrators import make_calibrator, method_title, weight_amax
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.exporting.sparse.ranges import NodeRange, Ranges, graph_digest, quantised, weight_norm
from mmdeploy_ext.runtime.preprocess.points import point_rule
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution, SparseGraph
from mmdeploy_ext.runtime.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from mmdeploy_ext.exporting.int8.calibrators import Calibrator
    from mmdeploy_ext.families.detector import Detector

    Sweep = tuple[np.ndarray, np.ndarray]
    """(N, C) float features, (N, 4) int32 coordinates in the graph's order."""

SWAPPED_COLUMNS = [0, 3, 2, 1]
"""Swaps x and z of coordinates."""


def calibrate(detector: Detector, source: str | Path, options: Calibration) -> Ranges:
    """A backbone's ranges, measured on the sweeps of `source`, see `Sweeps`."""
    from mmdeploy_ext.families.backbone_files import trace  # imports torch

    options, traced = options.resolved(detector.family.int8), trace(detector)
    graph = fold(traced, 'fp32')
    ranges = calibrate_sweeps(
        graph,
        config_sweeps(detector, source, graph.order, options.batches, options.root),
        options.method,
        percentile=options.percentile,
        add_method=options.add_method or None,
        unfolded=kernels_before_folding(traced, graph, options.unfolded),
        source=str(source),
        checkpoint_sha256=detector.checkpoint_sha256,
    )
    return ranges.half() if options.half else ranges


def config_sweeps(
    detector: Detector, source: str | Path, order: str, limit: int = 0, root: str = ''
) -> Sweeps:
    """Sweeps of a source, voxelised by the backbone's config, evenly limited; see `Sweeps`."""
    from mmdeploy_ext.runtime.preprocess.points import voxelise

    def voxels(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, coordinates = voxelise(points, detector.rule)
        return features, coordinates if detector.rule.order == order else coordinates[:, SWAPPED_COLUMNS]

    rule = point_rule(detector.cfg, detector.settings.in_channels)
    return Sweeps(source, voxels, rule, root or None, limit, order)


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
    """Measure input ranges on sweeps, and compute weight ranges per channel.

    Args:
        graph: folded in fp32.
        sweeps: (features (N, C), coordinates (N, 4)) in the graph's order.
        method: 'mse', 'percentile' or 'max'.
        percentile: of |x|, in percent.
        add_method: for additions; the reference uses 'max' for CenterPoint.
        unfolded: kernels of `kernels_before_folding`, replacing folded ones.
        source: name of the sweeps for the file.
        checkpoint_sha256: for the file.

    Raises:
        DataError: non-finite values, or an input of zeros.
    """
    nodes = quantised(graph)
    calibrators = {
        node.name: make_calibrator((add_method or method) if isinstance(node, Add) else method, percentile)
        for node in nodes
    }
    count = 0
    for count, sweep in enumerate(tracked(sweeps, 'calibrating'), 1):
        _collect(graph, sweep, calibrators, f'sweep {count} of {source}')
    ranges = {}
    for node in nodes:
        amax = calibrators[node.name].amax()
        if amax == 0:
            raise DataError(
                f'{source}: the input of {node.name} ({node.module}) was 0 in all {count} sweeps, so it '
                'has no range; pass sweeps that reach it, or check the weights'
            )
        weight_fields = ()
        if isinstance(node, SparseConvolution):
            weights = (unfolded or {}).get(node.name, node.weight)
            weight_fields = weight_amax(weights), weight_norm(node)
        ranges[node.name] = NodeRange(node.module, float(np.float32(amax)), *weight_fields)
    title = method_title(method, percentile)
    if add_method and add_method != method:
        title += f' (additions: {method_title(add_method, percentile)})'
    return Ranges(ranges, title, source, count, graph_digest(graph), checkpoint_sha256)


def _collect(graph: SparseGraph, sweep: Sweep, calibrators: Mapping[str, Calibrator], place: str) -> None:
    def observe(node, inputs, weight):  # noqa: ANN001, ANN202
        if node.name in calibrators:
            try:
                # the two inputs of an addition share one quantiser
                for values in inputs:
                    calibrators[node.name].collect(values)
            except ValueError as error:
                raise DataError(f'{place}: input of {node.name} ({node.module}): {error}') from error
        return inputs, weight

    features, coordinates = sweep
    engine.run(graph, coordinates, features, transform=observe)


def kernels_before_folding(
    traced: SparseGraph, folded: SparseGraph, modules: Collection[str]
) -> dict[str, np.ndarray]:
    """Node -> kernel before folding, for some modules.

    The reference uses it for CenterPoint's `conv_input.0`: it folds its normalisation when writing the file.
    """
    kernels = {node.module: node.weight for node in traced.convolutions()}
    for module in modules:
        if module not in kernels:
            raise UsageError(f'{module}: is not the module of a convolution in the graph')
    return {node.name: kernels[node.module] for node in folded.convolutions() if node.module in modules}
