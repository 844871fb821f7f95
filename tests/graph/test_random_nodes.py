"""Nodes that draw random numbers are found wherever they are."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mmdeploy_ext.graph.io.index import RANDOM, random_nodes
from toy_engines import parse


def with_nodes(*nodes, functions=()):
    model = parse('[add] y = Add(x, x)')
    model.graph.node.extend(nodes)
    model.functions.extend(functions)
    return model


def test_every_operator_that_draws_is_named():
    assert random_nodes(with_nodes()) == []
    for operator in RANDOM:
        node = helper.make_node(operator, ['x'], ['z'], name='draw')
        assert random_nodes(with_nodes(node)) == [f'draw ({operator})']


def test_bodies_and_functions_are_searched():
    draw = helper.make_node('RandomNormal', [], ['z'], name='inner', shape=[1])
    body = helper.make_graph([draw], 'body', [], [helper.make_tensor_value_info('z', 1, [1])])
    chosen = helper.make_node('If', ['x'], ['w'], then_branch=body, else_branch=body)
    function = helper.make_function('own', 'F', [], ['z'], [draw], [helper.make_opsetid('', 17)])
    assert random_nodes(with_nodes(chosen, functions=[function])) == ['inner (RandomNormal)'] * 3


@pytest.mark.parametrize(
    ('inputs', 'found'),
    [
        (['x', 'ratio'], []),
        (['x', 'ratio', 'constant_no'], []),
        (['x', 'ratio', 'yes'], ['drop (Dropout)']),
        (['x', 'ratio', 'constant_yes'], ['drop (Dropout)']),
        (['x', 'ratio', 'fed_no'], ['drop (Dropout)']),
    ],
)
def test_dropout_counts_where_it_can_be_in_training_mode(inputs, found):
    model = with_nodes(helper.make_node('Dropout', inputs, ['z'], name='drop'))
    for name, value in dict(no=False, yes=True, fed_no=False).items():
        tensor = numpy_helper.from_array(np.array(value), name)
        model.graph.initializer.append(tensor)
        constant = helper.make_node('Constant', [], [f'constant_{name}'], value=tensor)
        model.graph.node.insert(0, constant)
    model.graph.input.append(helper.make_tensor_value_info('fed_no', onnx.TensorProto.BOOL, []))
    assert random_nodes(model) == found
