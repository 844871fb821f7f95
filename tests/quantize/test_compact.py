"""A compact INT8 file: fewer bytes, the same numbers to the last bit, nothing that others rely on renamed."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from test_dense_layers import SIZE, residual_model

from mmdeploy_ext.quantize.compact import compact
from mmdeploy_ext.quantize.dense import DenseQuantiser
from mmdeploy_ext.quantize.dense_layers import DenseGraph


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


def small_model(first, second, names=('one', 'two')):
    nodes = [
        helper.make_node('Add', ['x', names[0]], ['y']),
        helper.make_node('Add', ['y', names[1]], ['z_scale']),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ('x', 'z_scale')]
    constants = [numpy_helper.from_array(first, names[0]), numpy_helper.from_array(second, names[1])]
    return helper.make_model(
        helper.make_graph(nodes, 'g', values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid('', 17)],
        ir_version=8,
    )


def constants(model):
    return [tensor.name for tensor in compact(model).graph.initializer]


def test_constants_are_merged_only_where_type_shape_and_every_bit_are_equal():
    zeros = np.zeros(2, np.float32)
    assert constants(small_model(zeros, zeros)) == ['c0'], 'it is neither'
    assert constants(small_model(zeros, zeros, ('c0', 'two'))) == ['c1'], 'c0 is taken'
    for other in (-zeros, np.zeros((1, 2), np.float32), np.array([0, 1e-45], np.float32)):
        assert constants(small_model(zeros, other)) == ['one', 'two']
    assert constants(small_model(zeros, np.zeros(2, np.int32))) == ['one', 'two']
