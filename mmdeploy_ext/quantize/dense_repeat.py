"""An INT8 file's record of how it was quantised, and the same done again to a fresh export.

The ranges of the activations are in the record; scales of weights follow from the weights. So the proof
compares every layer, code and scale of the file with what the checkpoint gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.graph import edits
from mmdeploy_ext.quantize.dense import DenseQuantiser, finished
from mmdeploy_ext.quantize.dense_layers import DenseGraph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

QUANTISE = 'quantize'


def record(model: onnx.ModelProto, quantiser: object, layers: Sequence[str]) -> None:
    """Keep in an INT8 model, in place, how it was made; what NNCF does cannot be done again.

    Args:
        model: the result.
        quantiser: that made it.
        layers: in INT8.
    """
    if not isinstance(quantiser, DenseQuantiser):
        edits.record(model, f'{QUANTISE} --engine openvino', dict(layers=list(layers)), 'nncf')
        return
    used = quantiser.used_ranges(layers)
    ranges = {name: [np.asarray(end).item() for end in ends] for name, ends in used.items()}
    arguments = dict(layers=list(layers), ranges=ranges, reduce_range=quantiser.reduce_range)
    edits.record(model, QUANTISE, arguments, 'onnxruntime')


def quantise_again(
    model: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Sequence[float]], reduce_range: bool
) -> onnx.ModelProto:
    """Return a float model with these layers in INT8, by the ranges of a record.

    Args:
        model: float32.
        layers: names of layers.
        ranges: tensor -> least and largest value.
        reduce_range: see `DenseQuantiser`.

    Raises:
        UsageError: a layer that the model lacks.
        InferenceError: a range that is missing or not finite.
    """
    graph = DenseGraph(model)
    quantiser = DenseQuantiser(graph, reduce_range)
    quantiser.ranges = {
        name: (np.asarray(low, np.float32), np.asarray(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    return finished(graph, quantiser.network(layers), {})
