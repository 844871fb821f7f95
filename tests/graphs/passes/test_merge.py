"""Models joined by tensor name: renamed, numbers equal; what does not fit is refused by name."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.passes.merge import concatenate


def make_model(nodes, inputs, outputs, constants=(), opset=17, ir_version=8):
    def infos(names):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['B', 3]) for name in names]

    values = dict(constants).items()
    initializers = [numpy_helper.from_array(np.float32(value), name) for name, value in values]
    graph = helper.make_graph(nodes, 'part', infos(inputs), infos(outputs), initializers)
    imports = [helper.make_opsetid('', opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def scale(source, target, factor, inner='/same/inner', **options):
    """Return target = relu(source * factor); the inner names are the same in every part."""
    nodes = [
        helper.make_node('Mul', [source, 'weight'], [inner], name='/same/mul'),
        helper.make_node('Relu', [inner], [target], name='/same/relu'),
    ]
    return make_model(nodes, [source], [target], {'weight': [factor] * 3}, **options)


def run(model, **feeds):
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


X = np.array([[1.0, -2.0, 3.0]], np.float32)


def test_a_chain_is_joined_by_name_and_equals_the_parts_run_in_turn():
    first, second = scale('x', 'middle', 2.0), scale('middle', 'y', 5.0)
    wanted = run(second, middle=run(first, x=X)['middle'])['y']
    merged = concatenate([first, second], ['net', 'post'], ['y'])
    np.testing.assert_array_equal(run(merged, x=X)['y'], wanted)
    assert [value.name for value in merged.graph.input] == ['x']
    assert [value.name for value in merged.graph.output] == ['y']


def test_inputs_are_shared_and_an_earlier_output_can_leave_the_graph_too():
    second = make_model([helper.make_node('Add', ['x', 'middle'], ['y'])], ['x', 'middle', 'extra'], ['y'])
    merged = concatenate([scale('x', 'middle', 2.0), second], ['a', 'b'], ['y', 'middle'])
    assert [value.name for value in merged.graph.input] == ['x', 'extra']
    found = run(merged, x=X, extra=X)
    np.testing.assert_array_equal(found['y'], X + found['middle'])
    assert list(found) == ['y', 'middle']


def branching(source, target):
    """Return a model whose two branches use a value and a constant of the graph around them."""

    def branch(name, op_type):
        node = helper.make_node(op_type, ['inner', 'weight'], [f'{name}_out'], name='/branch')
        value = helper.make_tensor_value_info(f'{name}_out', TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [value])

    nodes = [
        helper.make_node('Abs', [source], ['inner']),
        helper.make_node('ReduceSum', [source], ['total'], keepdims=0),
        helper.make_node('Greater', ['total', 'zero'], ['positive']),
        helper.make_node(
            'If', ['positive'], [target], then_branch=branch('yes', 'Add'), else_branch=branch('no', 'Mul')
        ),
    ]
    return make_model(nodes, [source], [target], {'weight': [10.0] * 3, 'zero': 0.0})


def test_sub_graphs_are_renamed_with_what_they_use():
    parts = [scale('x', 'middle', 2.0), branching('x', 'y')]
    wanted = [run(parts[1], x=x)['y'] for x in (X, -X)]
    merged = concatenate(parts, ['a', 'b'], ['y', 'middle'])
    for x, y in zip((X, -X), wanted, strict=True):
        np.testing.assert_array_equal(run(merged, x=x)['y'], y)
    inner = next(node for node in merged.graph.node if node.op_type == 'If').attribute[0].g
    assert inner.node[0].name == 'b/branch'
    assert list(inner.node[0].input) == ['b/inner', 'b/weight']
