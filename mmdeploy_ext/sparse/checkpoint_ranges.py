"""Ranges that a quantised checkpoint holds, by the paths of its quantisers. Needs numpy only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.distinct import check_distinct
from mmdeploy_ext.core.errors import CheckpointError, UsageError
from mmdeploy_ext.sparse.ir import Add, SparseConvolution
from mmdeploy_ext.sparse.ranges import NodeRange, Ranges, graph_digest, quantised, weight_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.sparse.ir import Node, SparseGraph


def from_amax(
    graph: SparseGraph,
    amax: Mapping[str, Any],
    source: str = 'checkpoint',
    checkpoint_sha256: str = '',
) -> Ranges:
    """Take the ranges that a quantised checkpoint holds, such as NVIDIA's.

    Args:
        graph: folded.
        amax: quantiser's path -> range, as arrays or numbers. A convolution at module path M reads
            `M._input_quantizer` and `M._weight_quantizer`, an addition in block M
            `M.quant_add._input_quantizer` (or at M itself); a trailing `._amax` and names without
            the leading underscore are the same. What is not there stays missing: see `Ranges.complete`.
        source: in words, for messages.
        checkpoint_sha256: of the checkpoint file.

    Raises:
        UsageError: a range has another number of values than output channels, or is not positive.
    """
    try:
        check_distinct((key, _quantiser_path(key)) for key in amax)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error
    plain = {_quantiser_path(key): value for key, value in amax.items()}
    nodes = {}
    for node in quantised(graph):
        kernel = _per_channel(source, node, plain) if isinstance(node, SparseConvolution) else ()
        nodes[node.name] = NodeRange(node.module, _scalar(source, node, plain), *kernel)
    return Ranges(nodes, 'checkpoint', source, 0, graph_digest(graph), checkpoint_sha256)


def _quantiser_path(key: str) -> str:
    return re.sub(r'\._(?=(input|weight)_quantizer)', '.', re.sub(r'\._?amax$', '', key))


def _scalar(source: str, node: Node, amax: Mapping[str, Any]) -> float | None:
    paths = [f'{node.module}.input_quantizer']
    if isinstance(node, Add):
        paths.insert(0, f'{node.module}.quant_add.input_quantizer')
    found = next((amax[path] for path in paths if path in amax), None)
    if found is None:
        return None
    values, where = np.asarray(found, np.float64), f'{source}: {node.name} ({node.module})'
    if values.size != 1:
        raise UsageError(f'{where}: {values.size} ranges for its input, expected 1')
    return float(values.item())


def _per_channel(source: str, node: SparseConvolution, amax: Mapping[str, Any]) -> tuple[Any, float]:
    found = amax.get(f'{node.module}.weight_quantizer')
    if found is None:
        return None, weight_norm(node)
    values = np.asarray(found, np.float64).reshape(-1)
    if values.size != node.out_channels:
        raise UsageError(
            f'{source}: {node.name} ({node.module}): {values.size} ranges for its weight, expected '
            f'{node.out_channels}, one per output channel'
        )
    return tuple(map(float, values)), weight_norm(node)
