"""Lookups: who makes and reads a tensor, also through the bodies of branches."""

import pytest
from hypothesis import given, settings
from onnx import helper

from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.graph.io.index import Index, all_nodes
from toy_graphs import conv_net, model_of, random_graph, steps


def slow_ancestors(model, outputs, stops):
    """Walk back over the nodes from the last; what bodies read is found by their text."""
    wanted, found = set(outputs) - set(stops), []
    for position in reversed(range(len(model.graph.node))):
        node = model.graph.node[position]
        if wanted & set(node.output):
            found.append(position)
            inner = [name for entry in node.attribute for part in entry.g.node for name in part.input]
            wanted |= (set(node.input) | set(inner)) - set(stops)
    return sorted(found)


@settings(max_examples=15, deadline=None)
@given(steps)
def test_ancestors_are_those_of_a_walk_over_all_nodes(chosen):
    model = random_graph(chosen)
    index = Index(model)
    made = [name for name in index.tensors if index.producer(name) is not None]
    for stops in ([], made[: len(made) // 2]):
        assert index.ancestors(index.outputs, stops) == slow_ancestors(model, index.outputs, stops)
    for name in made:
        assert name in index.writes(index.producer(name))
        assert all(name in index.reads(at) for at in index.consumers(name))
    reached = set(index.descendants(['x']))
    for at in range(len(index.nodes)):
        above = index.ancestors(index.writes(at))
        assert (at in reached) == any('x' in index.reads(node) for node in above)


def test_bodies_count_as_read_by_their_node():
    model = random_graph([('If', 0, 1)])
    index = Index(model)
    assert index.reads(3) == ['t0g', 'x', 'y'] and index.consumers('y') == [3]
    assert len(list(all_nodes(model))) == 6


def test_names_that_are_not_there_come_with_similar_ones():
    index = Index(conv_net())
    for call, words in (
        (lambda: index.check_tensor('score'), 'scores'),
        (lambda: index.find_node('/stem/Cnv'), '/stem/Conv'),
        (lambda: index.find_node('#6'), '#6'),
    ):
        with pytest.raises(UsageError, match=words):
            call()
    assert index.find_node('#2') == 2 == index.find_node('/layer/layer.0/conv/Conv')


def test_shared_and_missing_names_are_told_apart_by_position():
    nodes = [helper.make_node('Neg', [a], [b], name=name) for a, b, name in ('xas', 'abs')]
    nodes.append(helper.make_node('Neg', ['b'], ['c']))
    index = Index(model_of(nodes, [('x', [1])], [('c', [1])]))
    with pytest.raises(UsageError, match=r"'s'.*#0, #1"):
        index.find_node('s')
    assert [index.label(at) for at in range(3)] == ['s', 's', '#2 (Neg)']


def test_a_tensor_that_two_nodes_write_is_refused():
    nodes = [helper.make_node('Neg', ['x'], ['a'], name=name) for name in 'pq']
    with pytest.raises(ModelFileError, match=r"p and q .*'a'"):
        Index(model_of(nodes, [('x', [1])], [('a', [1])]))
