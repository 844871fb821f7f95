"""Parts of graphs: what they compute is what the whole computes there."""

import pytest

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.graphs.io.index import Index
from mmdeploy_ext.graphs.passes.extract import cut, extract
from mmdeploy_ext.graphs.passes.select import matching_nodes, select_nodes
from toy_engines import parse
from toy_graphs import as_in_whole, conv_net


def names(values):
    return [value.name for value in values]


def test_a_cut_keeps_what_its_outputs_need_and_nothing_else():
    part = cut(conv_net(), ['b'], ['d'])
    as_in_whole(conv_net(), part)
    assert names(part.graph.node) == ['/layer/layer.0/conv/Conv', '/GlobalAveragePool']
    assert names(part.graph.initializer) == ['block.weight']
    assert str(part.graph.input[0].type.tensor_type.shape.dim).count('dim_value: 4') == 3


def test_a_tensor_that_is_read_inside_and_outside_of_a_part_is_its_output():
    whole = parse('a = Relu(x) b = Neg(a) y = Add(a, b)')
    part = extract(whole, [0, 1])
    as_in_whole(whole, part)
    assert sorted(names(part.graph.output)) == ['a', 'b']


def test_patterns_choose_nodes_and_misses_come_with_similar_names():
    index = Index(conv_net())
    assert select_nodes(index, ['/layer/*', '/stem/Conv', '#1']) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"'/lyer/[*]'"):
        select_nodes(index, ['/lyer/*'])
    bracketed = conv_net()
    bracketed.graph.node[1].name = 'conv[0]'
    assert select_nodes(Index(bracketed), ['conv[0]']) == [1]
    assert matching_nodes(bracketed.graph.node, ['conv[0]']) == [1]
    with pytest.raises(UsageError, match="''"):  # a node without a name or module is no node called ''
        matching_nodes(bracketed.graph.node, [''])
