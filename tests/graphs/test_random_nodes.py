"""Nodes that draw random numbers are found wherever they are."""

from onnx import helper

from mmdeploy_ext.graphs.io.index import RANDOM, random_nodes
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
