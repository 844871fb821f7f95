"""Fold, simplify, opsets, float16 by name: fires, does not fire, twice is once, the numbers are equal."""

import hashlib
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from mmdeploy_ext.cli.graph_commands.proving import read_feeds
from mmdeploy_ext.graphs import edits, run
from mmdeploy_ext.graphs.output_comparison import compare_models, spec_of, with_half_ends
from mmdeploy_ext.graphs.passes.extract import extract
from mmdeploy_ext.graphs.passes.fp16 import to_fp16
from mmdeploy_ext.graphs.passes.simplify import fold, simplify
from mmdeploy_ext.graphs.run import random_feeds
from mmdeploy_ext.graphs.summary import describe, node_rows
from mmdeploy_ext.spec.comparison import compare_named, is_equal, is_exact

SHAPED = """
  one = Constant<value = float {1}>()
  two = Add(one, one)
  k = Mul(two, scale)
  s = Shape(x)
  r = Reshape(x, s)
  dead = Neg(r)
  m = Mul(r, k)
  y = Identity(m)
"""


def parse(
    body, opset=17, inputs='float[2,4] x', outputs='float[2,4] y', constants='<float scale = {3}>', **extra
):
    imports = ', '.join([f'"": {opset}'] + [f'"{name}": {version}' for name, version in extra.items()])
    text = f'<ir_version: 8, opset_import: [{imports}]> g ({inputs}) => ({outputs}) {constants} {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.metadata_props.add(key='model', value='toy')
    return model


def operators(model):
    return [node.op_type for node in model.graph.node]


def holds(change, model, exact=True):
    """Apply a pass; check what every pass promises and return the result."""
    before = hashlib.sha256(model.SerializeToString()).digest()
    result = change(model)
    assert hashlib.sha256(model.SerializeToString()).digest() == before
    onnx.checker.check_model(result, full_check=True)
    assert [value.name for value in result.graph.input] == [value.name for value in model.graph.input]
    assert result.graph.output == model.graph.output
    assert {entry.key for entry in model.metadata_props} <= {entry.key for entry in result.metadata_props}
    again = change(result)
    assert operators(again) == operators(result)
    rows = compare_models(model, result, [random_feeds(model)])
    assert rows and (is_exact(rows) if exact else all(row.passed for row in rows)), rows
    return result


@pytest.mark.parametrize('change', [fold, simplify])
def test_constants_are_computed_and_dead_nodes_go(change):
    result = holds(change, parse(SHAPED))
    assert len(result.graph.node) <= 2
    assert 'Mul' in operators(result)


@pytest.mark.parametrize('change', [fold, simplify])
def test_an_input_with_a_default_can_still_be_fed(change):
    model = parse(SHAPED, inputs='float[2,4] x, float scale')
    result = holds(change, model)
    feeds = dict(random_feeds(model), scale=np.array(-2, np.float32))
    assert is_exact(compare_models(model, result, [feeds]))
    assert run.run(result, feeds)['y'].any()


LAYERS = '["a/mm"] a = MatMul(x, w) \n ["b/act"] b = Tanh(a) \n ["c/mm"] c = MatMul(b, w) \n y = Relu(c)'
WEIGHTED = dict(inputs='float[4,4] x, float[4,4] w', outputs='float[4,4] y')


def layers(body=LAYERS):
    """Return a small network whose weight is a constant."""
    model = parse(body, **WEIGHTED)
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, 'w'))
    del model.graph.input[1]
    return model


def half_names(model):
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return {node.name for node in model.graph.node if types[node.output[0]] == onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ('pattern', 'kept'), [('b/*', 'b/act'), ('Tanh', 'b/act'), ('c', 'c/mm'), ('?/mm', 'a/mm c/mm')]
)
def test_nodes_stay_float32_by_name_operator_or_output(pattern, kept):
    model = layers()
    half = to_fp16(model, spec_of(model), [pattern])
    onnx.checker.check_model(half, full_check=True)
    assert half_names(model) == set()
    assert {'a/mm', 'b/act', 'c/mm'} - half_names(half) == set(kept.split())
    assert to_fp16(half, spec_of(model), [pattern]).SerializeToString() == half.SerializeToString()


def test_ends_become_float16_when_asked():
    model = layers()
    half = to_fp16(model, with_half_ends(spec_of(model)))
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {10}
    rows = compare_models(model, half, [random_feeds(model)], 1e-2, any_float=True)
    assert all(row.passed for row in rows) and not is_exact(rows)


@pytest.mark.parametrize('any_float', [False, True])
def test_large_integers_are_equal_or_not(any_float):
    """By 1e-4 of the largest value an index of 99,999 was equal to one of 100,000."""
    model, other = (
        parse(f'i = Constant<value_ints = [{index}, 7]>() \n y = Identity(i)', outputs='int64[2] y')
        for index in (100_000, 99_999)
    )
    assert is_exact(compare_models(model, model, [random_feeds(model)]))
    assert not is_equal(compare_models(model, other, [random_feeds(model)], any_float=any_float))


@pytest.mark.parametrize(('value', 'equal'), [(-np.inf, True), (np.inf, False), (np.nan, False)])
def test_an_infinity_is_equal_to_itself_alone(value, equal):
    sides = (dict(y=np.float32([entry, np.nan, 2])) for entry in (-np.inf, value))
    assert is_equal(compare_named(*sides, 1e-4)) == equal


def test_every_set_of_inputs_counts_relative_to_the_values_of_the_first_model():
    same, doubled = parse('y = Identity(x)'), parse('y = Add(x, x)')
    feeds = [dict(x=np.full((2, 4), value, np.float32)) for value in (1, 0)]
    assert [row.passed for row in compare_models(same, doubled, feeds, 0.7)] == [False, True]


def test_random_inputs_follow_from_seed_name_and_sizes():
    model = parse('z = Add(x, y)', inputs='float[N,C,4] x, float[N,C,4] y', outputs='float[N,C,4] z')
    feeds, again, other = (random_feeds(model, seed) for seed in (0, 0, 1))
    assert feeds['x'].shape == (1, 64, 4) and (feeds['x'] == again['x']).all()
    assert (feeds['x'] != feeds['y']).all() and (feeds['x'] != other['x']).all()
    first, second = read_feeds(SimpleNamespace(inputs=None, seed=4, size=['C=3']), model)
    assert (first['x'] == random_feeds(model, 4, dict(C=3))['x']).all() and (first['x'] != second['x']).all()
    pixels = parse('z = Identity(x)', inputs='uint8[200] x', outputs='uint8[200] z')
    assert random_feeds(pixels)['x'].max() > 200


def test_a_summary_has_inputs_defaults_and_nodes_by_name_operator_or_output():
    content = describe(parse(SHAPED, inputs='float[2,4] x, float scale'))
    assert [[value['name'] for value in content[key]] for key in ('inputs', 'defaults')] == [['x'], ['scale']]
    model = layers()
    model.graph.node[0].input[0] = 'w'  # a weight that is read twice counts once
    found = {pattern: node_rows(model, pattern) for pattern in ('MatMul', 'c', 'b/*', 'w')}
    assert {pattern: [row['position'] for row in rows] for pattern, rows in found.items()} == {
        'MatMul': [0, 2], 'c': [2], 'b/*': [1], 'w': []
    }  # fmt: skip
    assert found['MatMul'][0]['parameters'] == 16


def test_the_record_of_edits_grows_and_our_metadata_alone_are_dropped():
    model = parse('y = Neg(x)')
    edits.record(model, 'simplify')
    assert [entry.key for entry in model.metadata_props] == ['model'], 'the file is of another program'
    props = {'model': 'toy', 'mm2onnx.family': '"dense"', 'mm2onnx.edits': '["fp16"]'}
    onnx.helper.set_model_props(model, props)
    edits.record(model, 'simplify')
    assert model.metadata_props[2].value == '["fp16", "simplify"]'
    edits.drop_metadata(model)
    assert [entry.key for entry in model.metadata_props] == ['model']


def test_a_part_has_no_metadata_of_the_whole():
    model = layers()
    onnx.helper.set_model_props(model, {'model': 'toy', 'mm2onnx.family': '"dense"'})
    kept = [[entry.key for entry in extract(model, nodes).metadata_props] for nodes in ([0, 1], range(4))]
    assert kept == [['model'], ['model', 'mm2onnx.family']]
