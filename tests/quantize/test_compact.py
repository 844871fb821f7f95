"""A compact INT8 file: fewer bytes, the same numbers to the last bit, nothing that others rely on renamed."""

import numpy as np
import onnx
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


def test_texts_are_merged_only_where_they_are_equal():
    texts = ['first text', 'second text', 'third text', 'fourth text', 'first text']
    nodes = [helper.make_node('Identity', [f't{row}'], [f'y{row}']) for row in range(5)]
    outputs = [helper.make_tensor_value_info(f'y{row}', TensorProto.STRING, [1]) for row in range(5)]
    arrays = [np.array([text], object) for text in texts]
    initializers = [numpy_helper.from_array(array, f't{row}') for row, array in enumerate(arrays)]
    model = helper.make_model(
        helper.make_graph(nodes, 'g', [], outputs, initializers),
        opset_imports=[helper.make_opsetid('', 17)],
        ir_version=8,
    )
    assert [array[0] for array in run(compact(model), {})] == texts
    assert constants(model) == ['c0', 't1', 't2', 't3']


def test_outputs_keep_their_names_and_no_two_tensors_get_one():
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    model = compact(small_model(zeros, ones, ('w_scale', 'w.s')))
    assert [value.name for value in model.graph.output] == ['z_scale']
    assert [tensor.name for tensor in model.graph.initializer] == ['w_scale', 'w.s'], 'w.s is taken'
    onnx.checker.check_model(model)


def test_what_a_body_reads_keeps_its_name():
    body = helper.make_graph(
        [helper.make_node('Identity', ['w_scale'], ['out'])],
        'body',
        [],
        [helper.make_tensor_value_info('out', TensorProto.FLOAT, [2])],
    )
    model = small_model(np.zeros(2, np.float32), np.ones(2, np.float32), ('w_scale', 'two'))
    model.graph.node.append(helper.make_node('If', ['condition'], ['t'], then_branch=body, else_branch=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), 'condition'))
    assert 'w_scale' in constants(model)


def test_no_tensor_gets_a_name_of_a_body():
    body = helper.make_graph(
        [helper.make_node('Identity', ['x'], ['c0']), helper.make_node('Identity', ['c0'], ['w.s'])],
        'body',
        [],
        [helper.make_tensor_value_info('w.s', TensorProto.FLOAT, [2])],
    )
    model = small_model(np.zeros(2, np.float32), np.zeros(2, np.float32))
    node = helper.make_node('If', ['condition'], ['t'], then_branch=body, else_branch=body)
    model.graph.node.extend([node, helper.make_node('Add', ['x', 'w_scale'], ['u'])])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), 'condition'))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), 'w_scale'))
    assert constants(model) == ['c1', 'condition', 'w_scale']
    onnx.checker.check_model(compact(model))
