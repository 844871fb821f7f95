"""A compact INT8 file: fewer bytes, the same numbers to the last bit, nothing that others rely on renamed."""

import numpy as np
import onnxruntime

from mmdeploy_ext.exporting.int8.dense import DenseGraph, DenseQuantiser, compact
from test_dense_layers import SIZE, residual_model


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, feeds)


def batches(count=3):
    rng = np.random.default_rng(5)
    return [{'input': rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


def test_an_int8_file_becomes_smaller_and_gives_the_same_bits():
    graph = DenseGraph(residual_model())
    quantiser = DenseQuantiser(graph)
    quantiser.calibrate(batches())
    full = graph.joined(quantiser.network([layer.name for layer in graph.layers]))
    small = compact(full)
    assert small.ByteSize() < 0.9 * full.ByteSize()
    assert len(small.graph.node) == len(full.graph.node)
    assert len({tensor.name for tensor in small.graph.initializer}) < len(full.graph.initializer)
    assert not [node.name for node in small.graph.node if 'QuantizeLinear' in node.name]
    for feeds in batches(2):
        for one, other in zip(run(full, feeds), run(small, feeds), strict=True):
            np.testing.assert_array_equal(one, other)
    again = compact(small)
    assert again.SerializeToString() == small.SerializeToString(), 'a second run changes nothing'
