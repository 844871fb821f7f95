"""Passes for TensorRT: fire, do not fire, twice is once, the numbers are those of ONNX Runtime before."""

import numpy as np
from onnx import helper, numpy_helper

from mmdeploy_ext.graphs.passes.for_tensorrt import fix_inputs, for_tensorrt, parse_constants
from mmdeploy_ext.graphs.passes.precision import family_patterns, fp32_patterns
from mmdeploy_ext.graphs.run import Runner
from toy_engines import parse

X = np.arange(6, dtype=np.float32).reshape(2, 3)
STEP = 'step (int64 at, bool go, float[2,3] a) => (bool on, float[2,3] b) { on = Identity(go) b = Add(a, a) }'


def loop(condition=''):
    return parse(
        f'yes = Constant<value = bool {{1}}>() y = Loop<body = {STEP}>(n, {condition}, x)',
        constants='<int64 n = {3}>',
    )


def with_default():
    model = parse('y = Mul(x, scale)', 'float[2,3] x, float[1,3] scale')
    model.graph.initializer.append(numpy_helper.from_array(np.float32([[1, 2, 3]]), 'scale'))
    return model


def test_inputs_with_a_default_have_to_be_fed():
    model = with_default()
    after = for_tensorrt(model)
    assert [tensor.name for tensor in after.graph.initializer] == []
    assert len(model.graph.initializer) == 1
    assert for_tensorrt(after) == after
    fed = Runner(after).run({'x': X, 'scale': np.float32([[1, 2, 3]])})
    np.testing.assert_array_equal(fed['y'], Runner(model).run({'x': X})['y'])


def test_a_loop_without_a_condition_gets_one():
    model = loop()
    after = for_tensorrt(model)
    assert [node.input[1] for node in after.graph.node if node.op_type == 'Loop'] == ['always']
    assert for_tensorrt(after) == after
    np.testing.assert_array_equal(Runner(after).run({'x': X})['y'], Runner(model).run({'x': X})['y'])
    np.testing.assert_array_equal(Runner(after).run({'x': X})['y'], 8 * X)


def test_inputs_become_constants_of_their_default_or_of_a_value():
    model = with_default()
    for text, value in (('scale', [[1, 2, 3]]), ('scale=4,5,6', [[4, 5, 6]])):
        after = fix_inputs(model, parse_constants([text]))
        assert [entry.name for entry in after.graph.input] == ['x']
        expected = Runner(for_tensorrt(model)).run({'x': X, 'scale': np.float32(value)})['y']
        np.testing.assert_array_equal(Runner(after).run({'x': X})['y'], expected)
    assert fix_inputs(model, {}) is model


def test_what_follows_a_bound_beyond_float16_stays_float32_up_to_a_product():
    body = 'e = Exp(x) c = Clip(e, , top) s = Add(c, one) l = Log(s) y = MatMul(l, large)'
    large = 'float top = {1e8}, float one = {1}, float[2,1] large = {1e6, 1}'
    model = parse(body, 'float[1,2] x', 'float[1,1] y', constants=f'<{large}>')
    assert fp32_patterns(model) == ['c', 's', 'l']  # a weight beyond float16 stays an error
    number = 'top = Constant<value_float = 1e8>()'
    model = parse(
        f'{number} {body}', 'float[1,2] x', 'float[1,1] y', constants=f'<{large.partition(", ")[2]}>'
    )
    assert fp32_patterns(model) == ['c', 's', 'l']


def test_a_file_has_the_float32_patterns_of_its_family_that_fit_it():
    model = parse('a = Relu(x) y = Neg(a)')
    model.graph.node[0].name = 'region_network/neck/Relu'
    model.graph.node[1].name = 'region_network/pool/Neg'
    assert family_patterns(model) == []
    helper.set_model_props(model, {'mm2onnx.family': '"query"'})
    assert family_patterns(model) == ['region_network/[!bn]*']
    helper.set_model_props(model, {'mm2onnx.family': '"circles"'})
    assert family_patterns(model) == []
