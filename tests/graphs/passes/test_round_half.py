"""What a float16 graph stores is rounded, which ONNX Runtime's CPU does not show by itself."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.graphs.passes.rename import rename_tensors
from mmdeploy_ext.graphs.passes.round_half import round_half
from mmdeploy_ext.graphs.run import Runner

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


def test_a_graph_may_have_the_names_of_added_tensors():
    added = {name for node in round_half(make(TensorProto.FLOAT16)).graph.node for name in node.output}
    for name in added - {'t', 'u', 'y'}:
        model = make(TensorProto.FLOAT16)
        rename_tensors(model.graph, lambda old, name=name: name if old == 't' else old)
        onnx.checker.check_model(round_half(model), full_check=True)


def test_a_model_without_float16_comes_back_the_same():
    model = make(TensorProto.FLOAT)
    assert round_half(model) is model
