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
    graph: SparseGraph, amax: Mapping[str, Any], source: str = 'checkpoint', checkpoint_sha256: str = ''
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
        paths = [f'{node.module}.input_quantizer']
        if isinstance(node, Add):
            paths.insert(0, f'{node.module}.quant_add.input_quantizer')
        found = next((plain[path] for path in paths if path in plain), None)
        inputs, kernel = _values(source, node, found, 'input', 1), ()
        if isinstance(node, SparseConvolution):
            found = plain.get(f'{node.module}.weight_quantizer')
            kernel = _values(source, node, found, 'weight', node.out_channels), weight_norm(node)
        nodes[node.name] = NodeRange(node.module, inputs and inputs[0], *kernel)
    return Ranges(nodes, 'checkpoint', source, 0, graph_digest(graph), checkpoint_sha256)


def _quantiser_path(key: str) -> str:
    return re.sub(r'\._(?=(input|weight)_quantizer)', '.', re.sub(r'\._?amax$', '', key))


def _values(source: str, node: Node, found: Any, what: str, count: int) -> tuple[float, ...] | None:
    """Return the ranges of a quantiser, None where there are none."""
    if found is None:
        return None
    values = np.asarray(found, np.float64).reshape(-1)
    if values.size != count:
        expected = f'{count}, one per output channel' if what == 'weight' else count
        raise UsageError(
            f'{source}: {node.name} ({node.module}): {values.size} ranges for its {what}, expected {expected}'
        )
    return tuple(map(float, values))
