"""What is in a graph: nodes, modules from every source, weights."""

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.graph import summary as show
from toy_graphs import conv_net, model_of


def weight(name, *sizes):
    return onnx.numpy_helper.from_array(np.zeros(sizes, np.float32), name)


def test_nodes_are_listed_by_name_operator_or_output():
    rows = show.node_rows(conv_net(), 'Conv')
    assert [row['name'] for row in rows] == ['/stem/Conv', '/layer/layer.0/conv/Conv']
    assert rows[0]['shapes'] == ['float[1,4,4,4]'] and rows[0]['parameters'] == 4 * 27 + 4
    assert [row['position'] for row in show.node_rows(conv_net(), 'scores')] == [5]
    line = next(show.node_lines(rows))
    assert line.split() == ['#0', 'Conv', '/stem/Conv', 'images,', 'stem.weight,', 'stem.bias', '->', 'a',
                            'float[1,4,4,4]', '112', 'par']  # fmt: skip


def test_inputs_with_a_default_are_told_from_those_that_must_be_fed():
    node = helper.make_node('MatMul', ['x', 'w'], ['z'])
    model = model_of([node], [('x', [2, 4]), ('w', [4, 5])], [('z', [2, 5])], [weight('w', 4, 5)])
    content = show.describe(model)
    assert [entry['name'] for entry in content['inputs']] == ['x']
    assert [entry['name'] for entry in content['defaults']] == ['w']
    assert any(line.startswith('inputs with a default: w ') for line in show.lines(content))
