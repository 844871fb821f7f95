"""Each fact about an engine has a graph to which it applies, and one to which it does not."""

import onnxruntime
import pytest

from mmdeploy_ext.engines.precision_rules import RULES, found_rules, rule_lines
from toy_engines import parse


def attention(dtype, keys):
    return parse(
        '[s] scores = MatMul(q, k) [a] p = Softmax<axis = -1>(scores) [o] y = MatMul(p, v)',
        f'{dtype}[1,2,8] q, {dtype}[1,8,{keys}] k, {dtype}[1,{keys},8] v',
        f'{dtype}[1,2,8] y',
    )


def one_node(operator, dtype, opset=17):
    texts = dict(
        Conv=('[n] y = Conv(x, w)', f'{dtype}[1,3,8,8] x, {dtype}[4,3,3,3] w', f'{dtype}[1,4,6,6] y'),
        MatMul=('[n] y = MatMul(x, w)', f'{dtype}[2,3] x, {dtype}[3,4] w', f'{dtype}[2,4] y'),
        Gemm=('[n] y = Gemm(x, w)', f'{dtype}[2,3] x, {dtype}[3,4] w', f'{dtype}[2,4] y'),
        GridSample=('[n] y = GridSample(x, w)', 'float[1,3,8,8] x, float[1,2,2,2] w', 'float[1,3,2,2] y'),
        Add=('[n] y = Add(x, x)', f'{dtype}[2,3] x', f'{dtype}[2,3] y'),
        Relu=('[n] y = Relu(x)', f'{dtype}[2,3] x', f'{dtype}[2,3] y'),
        Sigmoid=('[n] y = Sigmoid(x)', f'{dtype}[2,3] x', f'{dtype}[2,3] y'),
    )  # fmt: skip
    return parse(*texts[operator], opset=opset)


PRODUCTS = 'Conv', 'MatMul', 'Gemm'
CASES = {
    'GridSample of opset 20': (one_node('GridSample', 'float', 20), one_node('GridSample', 'float', 18)),
    'beyond 65,504 keys': (attention('float16', 65_505), attention('float16', 64)),
    'sums in float16': (attention('float16', 64), attention('float', 64)),
    **{f'TF32 {name}': (one_node(name, 'float'), one_node(name, 'float16')) for name in PRODUCTS},
    **{
        f'no bfloat16 {name}': (one_node(name, 'bfloat16', 22), one_node(name, 'float', 22))
        for name in ('Conv', 'Relu', 'Add', 'Sigmoid')
    },
}  # fmt: skip


def rules_of(model, name):
    title, _, operator = name.rpartition(' ') if name.startswith(('TF32', 'no')) else (name, '', '')
    return [rule for rule in found_rules(model) if title in rule.text and operator in ('', rule.operator)]


@pytest.mark.parametrize('name', CASES)
def test_a_rule_names_the_nodes_that_it_is_about_and_no_others(name):
    applies, is_right = CASES[name]
    assert len(rules_of(applies, name)) == 1 and not rules_of(is_right, name)


def test_every_rule_is_tested_and_says_a_way_out():
    tested = {rule for name, (model, _) in CASES.items() for rule in rules_of(model, name)}
    assert tested == set(RULES)
    assert all(
        rule.way_out in ' '.join(rule_lines(model))
        for model, _ in CASES.values()
        for rule in found_rules(model)
    )


@pytest.mark.parametrize('name', ['Conv', 'Relu', 'Add', 'Sigmoid'])
def test_onnx_runtime_has_no_bfloat16_on_a_cpu(name):
    with pytest.raises(Exception, match='Could not find an implementation'):
        onnxruntime.InferenceSession(one_node(name, 'bfloat16', 22).SerializeToString())


def test_a_product_of_int8_values_is_no_product_of_float32():
    nodes = '[a] x = DequantizeLinear(p, s, z) [b] w = DequantizeLinear(q, s, z) [n] y = MatMul(x, w)'
    inputs = 'int8[2,3] p, int8[3,4] q, float s, int8 z'
    assert not found_rules(parse(nodes, inputs, 'float[2,4] y'))
