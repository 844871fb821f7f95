"""What is in a graph: nodes, modules from every source, weights."""


import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.graph.io import modules
from mmdeploy_ext.graph.show import summary as show
from toy_graphs import conv_net, foreign, model_of


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


def test_modules_come_from_the_metadata_of_the_other_exporter_or_from_weights():
    model = conv_net()
    for node in model.graph.node:
        node.name = f'node_{node.op_type}'
    assert modules.sources(model) == {'weights': 3, '': 3}
    assert modules.module_scopes(model)[2] == ('block', 'weights')
    model.graph.node[1].metadata_props.add(key=modules.SCOPES, value="['', 'head', 'head.convs.0', 'relu']")
    model.graph.node[4].metadata_props.add(key=modules.SCOPES, value='no list')
    assert modules.module_scopes(model)[1] == ('head.convs.0', 'metadata')
    assert modules.module_scopes(model)[4] == ('', 'metadata')


def test_weights_that_are_constants_are_counted_as_in_paddle_files():
    model = onnx.load(foreign('picodet'))
    content = show.describe(model)
    assert content['parameters'] == 1_820_300


def test_inputs_with_a_default_are_told_from_those_that_must_be_fed():
    node = helper.make_node('MatMul', ['x', 'w'], ['z'])
    model = model_of([node], [('x', [2, 4]), ('w', [4, 5])], [('z', [2, 5])], [weight('w', 4, 5)])
    content = show.describe(model)
    assert [entry['name'] for entry in content['inputs']] == ['x']
    assert [entry['name'] for entry in content['defaults']] == ['w']
    assert any(line.startswith('inputs with a default: w ') for line in show.lines(content))
