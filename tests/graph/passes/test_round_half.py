"""What a float16 graph stores is rounded, which ONNX Runtime's CPU does not show by itself."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.graph.passes.round_half import round_half
from mmdeploy_ext.graph.run import Runner

X = np.array([0.3, 0.7, 1.3, 2.6])


def make(kind):
    """y = relu((x + 2048) - 2048): in float16 a number near 2048 is 2 wide."""
    big = helper.make_tensor('big', kind, [1], [2048.0])
    nodes = [
        helper.make_node('Add', ['x', 'big'], ['t'], 'add'),
        helper.make_node('Sub', ['t', 'big'], ['u'], 'sub'),
        helper.make_node('Relu', ['u'], ['y'], 'relu'),
    ]
    ends = [[helper.make_tensor_value_info(name, kind, [4])] for name in 'xy']
    graph = helper.make_graph(nodes, 'g', *ends, [big])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def test_every_stored_value_is_rounded_and_ends_keep_their_type():
    model = make(TensorProto.FLOAT16)
    rounded = round_half(model)
    onnx.checker.check_model(rounded, full_check=True)
    (got,) = Runner(rounded).run(dict(x=X.astype(np.float16))).values()
    half = X.astype(np.float16)
    np.testing.assert_array_equal(got, (half + np.float16(2048)) - np.float16(2048))
    assert got.dtype == np.float16
    assert not np.array_equal(Runner(model).run(dict(x=half))['y'], got), 'ONNX Runtime shows it by itself'


def test_a_model_without_float16_comes_back_the_same():
    model = make(TensorProto.FLOAT)
    assert round_half(model) is model


def with_choice(*inner_nodes):
    """The model of `make`, and an If whose branches make its float32 output w."""
    model = make(TensorProto.FLOAT16)
    output = helper.make_tensor_value_info('z', TensorProto.FLOAT, [4])
    inner = helper.make_graph(inner_nodes, 'b', [], [output])
    model.graph.initializer.append(helper.make_tensor('yes', TensorProto.BOOL, [], [True]))
    choice = helper.make_node('If', ['yes'], ['w'], 'choice', then_branch=inner, else_branch=inner)
    model.graph.node.append(choice)
    model.graph.output.append(helper.make_tensor_value_info('w', TensorProto.FLOAT, [4]))
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_sub_graph_may_read_inputs_and_outputs_in_float16():
    casts = [helper.make_node('Cast', [name], [f'{name}_'], to=TensorProto.FLOAT) for name in 'xy']
    rounded = round_half(with_choice(*casts, helper.make_node('Add', ['x_', 'y_'], ['z'])))
    onnx.checker.check_model(rounded, full_check=True)
    got = Runner(rounded).run(dict(x=X.astype(np.float16)))
    expected = X.astype(np.float16).astype(np.float32) + got['y']
    np.testing.assert_array_equal(got['w'], expected)


def test_a_default_keeps_the_type_of_its_input():
    model = make(TensorProto.FLOAT16)
    model.graph.input.append(helper.make_tensor_value_info('big', TensorProto.FLOAT16, [1]))
    rounded = round_half(model)
    onnx.checker.check_model(rounded, full_check=True)
    feeds = dict(x=X.astype(np.float16))
    got = [Runner(entry).run(feeds)['y'] for entry in (rounded, round_half(make(TensorProto.FLOAT16)))]
    np.testing.assert_array_equal(*got)
    fed = Runner(rounded).run(dict(feeds, big=np.zeros(1, np.float16)))['y']
    np.testing.assert_array_equal(fed, feeds['x'])
