"""What is in a graph: FLOPs against what the nodes really multiply, modules from every source, pictures."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import helper

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph import flops
from mmdeploy_ext.graph.io import modules
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.show import draw, tree
from mmdeploy_ext.graph.show import summary as show
from toy_graphs import conv_net, foreign, model_of, random_graph, steps


def weight(name, *sizes):
    return onnx.numpy_helper.from_array(np.zeros(sizes, np.float32), name)


CASES = {
    'conv': (
        helper.make_node('Conv', ['x', 'w', 'b'], ['z'], group=2, strides=[2, 1]),
        [1, 4, 6, 5], [weight('w', 6, 2, 2, 3), weight('b', 6)], 6 * 3 * 3 * (2 * 2 * 2 * 3 + 1),
    ),
    'transposed': (
        helper.make_node('ConvTranspose', ['x', 'w'], ['z'], strides=[2, 2]),
        [1, 4, 3, 3], [weight('w', 4, 5, 2, 2)], 2 * 4 * 9 * 5 * 4,
    ),
    'gemm': (
        helper.make_node('Gemm', ['x', 'w', 'b'], ['z'], transA=1),
        [7, 3], [weight('w', 7, 5), weight('b', 5)], 3 * 5 * (2 * 7 + 1),
    ),
    'matmul': (
        helper.make_node('MatMul', ['x', 'w'], ['z']),
        [2, 3, 4], [weight('w', 4, 5)], 2 * 2 * 3 * 5 * 4,
    ),
    'einsum': (
        helper.make_node('Einsum', ['x', 'w'], ['z'], equation='bij, jk -> bik'),
        [2, 3, 4], [weight('w', 4, 5)], 2 * 2 * 3 * 5 * 4,
    ),
    'open': (helper.make_node('MatMul', ['x', 'w'], ['z']), ['n', 4], [weight('w', 4, 5)], None),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_flops_are_two_per_multiply_add_and_one_per_bias(case):
    node, shape, weights, expected = CASES[case]
    model = model_of([node], [('x', shape)], [('z', None)], weights)
    assert flops.count(model) == {0: expected}
    assert show.describe(model)['flops_unknown'] == (expected is None)


def test_the_offsets_of_a_deformable_convolution_are_no_bias():
    inputs = [('x', [1, 4, 6, 6]), ('w', [2, 4, 3, 3]), ('o', [1, 18, 4, 4])]
    for names, bias in (['x', 'w', 'o'], 0), (['x', 'w', 'o', 'b'], 1):
        node = helper.make_node('DeformConv', names, ['z'])
        model = model_of([node], inputs, [('z', [1, 2, 4, 4])], [weight('b', 2)], opset=19)
        assert flops.count(model) == {0: 2 * 16 * (2 * 4 * 9 + bias)}


@pytest.mark.parametrize(
    ('operator', 'names', 'bias'),
    [
        ('ConvInteger', 'x w p', 0),
        ('QLinearConv', 'x s p w s p s p', 0),
        ('QLinearConv', 'x s p w s p s p b', 1),
    ],
)
def test_zero_points_of_integers_are_no_bias(operator, names, bias):
    names, outputs = names.split(), [('z', [1, 2, 4, 4])]
    inputs = [(name, [1, 4, 6, 6] if name == 'x' else [1]) for name in dict.fromkeys(names) if name != 'w']
    node = helper.make_node(operator, names, ['z'])
    model = model_of([node], inputs, outputs, [weight('w', 2, 4, 3, 3)])
    assert flops.count(model) == {0: 2 * 16 * (2 * 4 * 9 + bias)}


def test_flops_of_a_node_that_is_not_counted_are_zero():
    cost = flops.count(conv_net())
    assert sorted(cost) == [0, 2, 5]
    assert sum(cost.values()) == 4 * 16 * (2 * 27 + 1) + 6 * 16 * 2 * 2 + 5 * (2 * 6 + 1)
    assert [flops.text(number) for number in (None, 12, 2.5e9)] == ['?', '12 FLOPs', '2.50 GFLOPs']


def test_nodes_are_listed_by_name_operator_or_output():
    rows = show.node_rows(conv_net(), 'Conv')
    assert [row['name'] for row in rows] == ['/stem/Conv', '/layer/layer.0/conv/Conv']
    assert rows[0]['shapes'] == ['float[1,4,4,4]'] and rows[0]['parameters'] == 4 * 27 + 4
    assert [row['position'] for row in show.node_rows(conv_net(), 'scores')] == [5]
    line = next(show.node_lines(rows))
    assert line.split() == ['#0', 'Conv', '/stem/Conv', 'images,', 'stem.weight,', 'stem.bias', '->', 'a',
                            'float[1,4,4,4]', '112', 'par,', '3.52', 'kFLOPs']  # fmt: skip


def test_modules_come_from_node_names():
    root = tree.build(conv_net())
    layer = root.children['layer'].children['0'].children['conv']
    assert (layer.nodes, layer.parameters, layer.flops, layer.operators) == (1, 12, 384, {'Conv': 1})
    assert root.operators == {'GlobalAveragePool': 1, 'Flatten': 1} and root.nodes == 6
    assert root.parameters == 112 + 12 + 35 and list(root.children) == ['stem', 'relu', 'layer', 'fc']
    lines = list(tree.lines(root, 1))
    assert len(lines) == 5 and lines[3].startswith('├─ layer')
    assert tree.as_json(root)['children'][0]['own'] == {'Conv': 1}


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
    assert content['parameters'] == 1_820_300 and content['flops_unknown'] == 0
    assert 6.6e9 < content['flops'] < 6.7e9
    assert tree.build(model).parameters == 1_820_300


def test_the_flops_of_yolox_nano_are_those_that_its_authors_state():
    assert show.describe(onnx.load(foreign('yolox')))['flops'] == pytest.approx(1.08e9, rel=0.04)


# ---- pictures


def drawn(model, path, **options):
    many = draw.draw(model, path, **options)
    root = ET.parse(path).getroot()
    return many, [element.text for element in root.iter() if element.tag.endswith('text')]


@settings(max_examples=10, deadline=None)
@given(steps)
def test_every_node_is_in_the_picture_once(tmp_path_factory, chosen):
    model = random_graph(chosen)
    many, texts = drawn(model, tmp_path_factory.mktemp('x') / 'x.svg', title='<a & b>')
    assert many == sum(node.op_type != 'Constant' for node in model.graph.node)
    assert texts[0] == '<a & b>'
    for node in model.graph.node:
        if node.name:
            assert texts.count(node.name) == 1


def test_the_neighbourhood_of_a_node_ends_where_it_should(tmp_path):
    many, texts = drawn(conv_net(), tmp_path / 'x.svg', node='/layer/layer.0/conv/Conv', depth=1)
    assert many == 3 and '/relu/Relu' in texts and '/stem/Conv' not in texts and texts.count('...') == 2
    assert drawn(conv_net(), tmp_path / 'x.svg', node='#2', depth=0)[0] == 1
    assert draw.neighbourhood(Index(conv_net()), 2, 99) == list(range(6))
    assert [path.name for path in tmp_path.iterdir()] == ['x.svg']


def test_pictures_that_cannot_be_drawn_are_refused(tmp_path):
    for options, words in (
        (dict(target=tmp_path / 'x.bmp'), 'ends in .svg, .png, .pdf'),
        (dict(target=tmp_path / 'x.svg', node='/stem/Con'), 'did you mean /stem/Conv'),
        (dict(target=tmp_path / 'x.svg', node='#1', depth=-1), '0 or more'),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            draw.draw(conv_net(), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['.png', '.pdf'])
def test_pictures_of_other_formats(suffix, tmp_path, capfd):
    assert draw.draw(conv_net(), tmp_path / f'x{suffix}') == 6
    assert (tmp_path / f'x{suffix}').read_bytes()[:5] in (b'\x89PNG\r', b'%PDF-')
    assert capfd.readouterr() == ('', '')


def test_inputs_with_a_default_are_told_from_those_that_must_be_fed():
    node = helper.make_node('MatMul', ['x', 'w'], ['z'])
    model = model_of([node], [('x', [2, 4]), ('w', [4, 5])], [('z', [2, 5])], [weight('w', 4, 5)])
    content = show.describe(model)
    assert [entry['name'] for entry in content['inputs']] == ['x']
    assert [entry['name'] for entry in content['defaults']] == ['w']
    assert any(line.startswith('inputs with a default: w ') for line in show.lines(content))
