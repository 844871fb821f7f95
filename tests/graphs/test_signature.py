"""Graphs are the same when they compute the same for every input; names and order of nodes do not count."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.signature import differences

WEIGHT = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
CHANGED = WEIGHT + 2e-6 * np.abs(WEIGHT).max()
ROUNDED = np.nextafter(WEIGHT, np.float32(9))


def constant(array=WEIGHT):
    return [], [numpy_helper.from_array(array, 'c')]


def in_a_branch(array=WEIGHT):
    inner = helper.make_node('Identity', ['inner'], ['z'])
    out = helper.make_tensor_value_info('z', TensorProto.FLOAT, array.shape)
    body = helper.make_graph([inner], 'body', [], [out], [numpy_helper.from_array(array, 'inner')])
    yes = numpy_helper.from_array(np.array(True), 'yes')
    return [helper.make_node('If', ['yes'], ['c'], then_branch=body, else_branch=body)], [yes]


def constant_node(array=WEIGHT):
    return [helper.make_node('Constant', [], ['c'], value=numpy_helper.from_array(array))], []


def in_a_function(array=WEIGHT):
    value = helper.make_node('Constant', [], ['r'], value=numpy_helper.from_array(array))
    function = helper.make_function('own', 'Made', [], ['r'], [value], [helper.make_opsetid('', 20)])
    return [helper.make_node('Made', [], ['c'], domain='own')], [], [function]


FORMS = [constant, in_a_branch, constant_node, in_a_function]


def model_of(nodes, initializers, functions=()):
    """Return a model that adds its constant 'c' to what the right weight 'w' gives."""
    product = helper.make_node('Mul', ['x', 'w'], ['h'], name='product')
    nodes = [*nodes, product, helper.make_node('Add', ['h', 'c'], ['y'], name='sum')]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in 'xy']
    kept = [numpy_helper.from_array(WEIGHT * 2, 'w'), *initializers]
    graph = helper.make_graph(nodes, 'g', values[:1], values[1:], kept)
    opsets = [
        helper.make_opsetid('', 20),
        helper.make_opsetid('own', 1),
        helper.make_opsetid('ai.onnx.ml', 3),
    ]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions))


@pytest.mark.parametrize('form', FORMS)
def test_a_difference_beyond_rounding_is_found_whatever_holds_the_constant(form):
    right, wrong = model_of(*form()), model_of(*form(CHANGED))
    assert differences(model_of(*form()), right) == []
    (found, *_) = differences(wrong, right)
    assert found.text


@pytest.mark.parametrize('form', [constant, in_a_branch, in_a_function])
def test_rounding_is_no_difference(form):
    assert differences(model_of(*form(ROUNDED)), model_of(*form())) == []


def test_a_constant_in_half_precision_may_be_the_neighbour():
    half = WEIGHT.astype(np.float16)
    beside = np.nextafter(half, np.float16(9))
    assert differences(model_of(*constant(beside)), model_of(*constant(half))) == []
    assert differences(model_of(*constant(np.nextafter(beside, np.float16(9)))), model_of(*constant(half)))


def test_the_weights_of_equal_branches_count_at_their_own_places():
    def branches(first, second, swapped=False):
        nodes = [helper.make_node('Mul', ['x', name], [f'{name}x']) for name in 'ab']
        joined = helper.make_node('Concat', ['bx', 'ax'] if swapped else ['ax', 'bx'], ['c'], axis=0)
        tensors = [numpy_helper.from_array(value, name) for name, value in (('a', first), ('b', second))]
        return model_of([*(nodes[::-1] if swapped else nodes), joined], tensors)

    right = branches(WEIGHT, 3 * WEIGHT)
    found = differences(branches(3 * WEIGHT, WEIGHT), right)
    texts = [f'{entry.where}: {entry.detail.partition(",")[0]}' for entry in found]
    assert sorted(texts) == ['#0 (Mul): a: 6 of 6 values differ', '#1 (Mul): b: 6 of 6 values differ']
    assert differences(branches(3 * WEIGHT, WEIGHT, swapped=True), right) == []


def test_names_and_the_order_of_nodes_do_not_count():
    left, right = (model_of(*constant()) for _ in range(2))
    for graph in (right.graph,):
        renamed = {'h': 'other', 'w': 'v', 'c': 'd'}
        extra = helper.make_node('Neg', ['x'], ['n'])
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
            node.name = ''
        for tensor in graph.initializer:
            tensor.name = renamed[tensor.name]
        graph.node.insert(0, extra)
        graph.node[-1].input[1] = 'n'
    left.graph.node[-1].input[1] = 'n'
    left.graph.node.insert(1, helper.make_node('Neg', ['x'], ['n']))
    assert differences(left, right) == []


def change_attribute(model):
    model.graph.node[0].op_type = 'Div'


def rewire(model):
    model.graph.node[1].input[0] = 'x'


def rename_output(model):
    model.graph.output[0].name = model.graph.node[-1].output[0] = 'z'


def rename_input(model):
    model.graph.input[0].name = model.graph.node[0].input[0] = 'image'


def other_opset(model):
    model.opset_import[0].version = 19


def duplicate_node(model):
    model.graph.node.insert(1, helper.make_node('Mul', ['x', 'w'], ['h2']))
    model.graph.node[-1].input[0] = 'h2'


def free_axis(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = 'B'


def with_default(model):
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, 'x'))


def after_the_end(model):
    model.graph.node[-1].output[0] = 'before'
    model.graph.node.append(helper.make_node('Clip', ['before'], ['y']))


CHANGES = [
    *(change_attribute, rewire, rename_output, rename_input, other_opset),
    *(duplicate_node, free_axis, with_default, after_the_end),
]


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_of_the_graph_is_named(change):
    model = model_of(*constant())
    change(model)
    found = differences(model, model_of(*constant()))
    assert found and all(entry.text for entry in found)
