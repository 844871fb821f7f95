"""Patterns to patterns: where a rule fires, where it does not and says why, and what is refused."""

import numpy as np
import onnx
import onnx.parser
import pytest

from mmdeploy_ext.contract.comparison import is_exact
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.feeds import random_feeds
from mmdeploy_ext.graph.output_comparison import compare_models
from mmdeploy_ext.graph.passes.pattern_text import parse_rule, rule_lines
from mmdeploy_ext.graph.passes.replace import replace


def model_of(body, opset=20, constants='<float one = {1}>', inputs='float[N,4] x', outputs='float[N,4] y'):
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {constants} {{ {body} }}'
    )
    model = onnx.parser.parse_model(text)
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f'n{place}'
    onnx.checker.check_model(model, full_check=True)
    return model


def operators(model):
    return [node.op_type for node in model.graph.node]


def replaced(model, rule, count=1):
    """Replace, and check what holds for every replacement."""
    before = model.SerializeToString()
    result, report = replace(model, parse_rule(rule))
    assert model.SerializeToString() == before
    assert report.count == count
    onnx.checker.check_model(result, full_check=True)
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    again, second = replace(result, parse_rule(rule))
    assert second.count == 0 and again.SerializeToString() == result.SerializeToString()
    return result, report


SWISH = 's = Sigmoid(a); y = Mul(a, s) -> e = Exp(a); p = Add(e, 1.0); q = Div(a, p); y = Mul(q, e)'


def test_a_pattern_is_replaced_in_every_place_also_with_swapped_operands():
    body = 's = Sigmoid(x) \n a = Mul(x, s) \n t = Sigmoid(a) \n y = Mul(t, a)'
    model = model_of(body)
    result, report = replaced(model, SWISH, 2)
    assert report.reasons == ()
    assert 'Sigmoid' not in operators(result) and operators(result).count('Exp') == 2
    assert all(node.name for node in result.graph.node)
    rows = compare_models(model, result, [random_feeds(model)], 1e-6)
    assert rows and all(row.passed for row in rows)


def test_a_pattern_may_have_an_operator_of_three_operands():
    model = model_of('m = Max(x, one, x) \n y = Relu(m)')
    rule = 'm = Max(a, b, c); y = Relu(m) -> k = Max(a, b); n = Max(k, c); y = Relu(n)'
    result, _ = replaced(model, rule)
    assert operators(result) == ['Max', 'Max', 'Relu']
    rows = compare_models(model, result, [random_feeds(model)], 1e-6)
    assert rows and all(row.passed for row in rows)


@pytest.mark.parametrize(
    ('body', 'outputs', 'why'),
    [
        ('s = Sigmoid(x) \n m = Mul(x, s) \n y = Add(m, s)', 'float[N,4] y', "'s' is read by 'n2'"),
        ('s = Sigmoid(x) \n y = Mul(x, s)', 'float[N,4] y, float[N,4] s', "'s' is an output"),
    ],
)
def test_a_place_whose_inner_result_is_used_elsewhere_is_kept_and_named(body, outputs, why):
    result, report = replaced(model_of(body, outputs=outputs), SWISH, 0)
    assert 'Sigmoid' in operators(result)
    assert len(report.reasons) == 1 and why in report.reasons[0]


def test_attributes_have_to_be_equal_and_a_default_may_be_left_out():
    rule = 's = Softmax<axis = -1>(a); y = Log(s) -> y = LogSoftmax<axis = -1>(a)'
    assert operators(replaced(model_of('s = Softmax(x) \n y = Log(s)'), rule)[0]) == ['LogSoftmax']
    replaced(model_of('s = Softmax<axis = 0>(x) \n y = Log(s)'), rule, 0)
    bare = 's = Softmax(a); y = Log(s) -> y = LogSoftmax(a)'
    replaced(model_of('s = Softmax<axis = -1>(x) \n y = Log(s)'), bare)
    replaced(model_of('s = Softmax<axis = 0>(x) \n y = Log(s)'), bare, 0)


def test_an_attribute_variable_carries_over():
    model = model_of('s = Softmax<axis = 0>(x) \n y = Log(s)')
    result, _ = replaced(model, 's = Softmax<axis = @axis>(a); y = Log(s) -> y = LogSoftmax<axis = @axis>(a)')
    assert result.graph.node[0].attribute[0].i == 0
    rows = compare_models(model, result, [random_feeds(model, sizes=dict(N=3))], 1e-6)
    assert all(row.passed for row in rows)


def test_a_number_fits_constants_of_one_value_and_not_inputs_with_a_default():
    rule = 'y = Mul(a, 0.5) -> y = Div(a, 2.0)'
    for constants in ('<float h = {0.5}>', '<float[1] h = {0.5}>'):
        result, _ = replaced(model_of('y = Mul(h, x)', constants=constants), rule)
        assert 'Div' in operators(result)
    replaced(model_of('y = Mul(h, x)', constants='<float h = {0.25}>'), rule, 0)
    model = model_of('y = Mul(h, x)', inputs='float[N,4] x, float h', constants='<float h = {0.5}>')
    replaced(model, rule, 0)


def test_an_operator_that_takes_fewer_inputs_in_the_opset_is_refused():
    body, axes = 's = Mul(x, x) \n r = ReduceSum(s, axes) \n y = Sqrt(r)', '<int64[1] axes = {1}>'
    model = model_of(body, 13, axes, outputs='float[N,1] y')
    with pytest.raises(UsageError, match=r'ReduceL2 of opset 13 of the model takes 1 inputs.*gives it 2'):
        rule = 's = Mul(a, a); r = ReduceSum(s, axes); y = Sqrt(r) -> y = ReduceL2(a, axes)'
        replace(model, parse_rule(rule))


def test_a_text_is_no_number():
    model = model_of('y = Equal(x, word)', 19, '<string word = {"1"}>', 'string[N,4] x', 'bool[N,4] y')
    result, report = replace(model, parse_rule('y = Equal(a, 1) -> y = Equal(a, a)'))
    assert result == model and not report.count


def test_the_number_gets_the_type_of_the_result():
    ends = dict(inputs='double[N,4] x', outputs='double[N,4] y', constants='<double h = {0.5}>')
    model = model_of('y = Mul(x, h)', **ends)
    result, _ = replaced(model, 'y = Mul(a, 0.5) -> y = Div(a, 2.0)')
    assert is_exact(compare_models(model, result, [random_feeds(model)]))


def test_a_chain_is_replaced_to_its_end():
    model = model_of('a = Relu(x) \n b = Relu(a) \n c = Relu(b) \n y = Relu(c)')
    result, _ = replaced(model, 'b = Relu(a); y = Relu(b) -> y = Relu(a)', 3)
    assert operators(result) == ['Relu']


def test_variables_may_be_called_anything():
    rule = 'types = Sigmoid(op); rule = Mul(op, types) -> self = Exp(op); rule = Neg(self)'
    result, _ = replace(model_of('s = Sigmoid(x) \n y = Mul(x, s)'), parse_rule(rule))
    assert operators(result) == ['Exp', 'Neg']


def test_branches_of_an_if_are_searched_too():
    branch = 'float[N,4] {0}) {{ s{0} = Sigmoid(x) \n {0} = Mul(x, s{0}) }}'
    branches = [f'{side}_branch = {side} () => ({branch.format(side[0])}' for side in ('then', 'else')]
    body = f'y = If(c) <{", ".join(branches)}>'
    model = model_of(body, inputs='float[N,4] x, bool c')
    result, report = replace(model, parse_rule('s = Sigmoid(a); y = Mul(a, s) -> y = HardSwish(a)'))
    assert report.count == 2
    onnx.checker.check_model(result, full_check=True)


NAMED_GRAPHS = {
    'hard-swish': 'h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) \n y = Mul(h, x)',
    'expand-hard-swish': 'y = HardSwish(x)',
    'expand-mish': 'y = Mish(x)',
    'expand-gelu': 'y = Gelu(x)',
    'log-softmax': 's = Softmax(x) \n y = Log(s)',
    'reduce-l2': 'k = Constant<value_ints = [1]>() \n s = Mul(x, x) \n r = ReduceSum(s, k) \n y = Sqrt(r)',
    'double-cast': 'i = Cast<to = 10>(x) \n c = Cast<to = 1>(i) \n y = Cast<to = 1>(c)',
}


@pytest.mark.parametrize(
    ('rule', 'message'),
    [
        ('y = Relu(a)', '0 arrows'),
        ('y = Relu(a -> y = Abs(a)', 'not ONNX text'),
        ('y = Relu(a) -> z = Abs(a)', "ends in 'y'.*'z'"),
        ('y = Relu(a) -> y = Add(a, b)', r"reads \['b'\]"),
        ('y = Relu(a) -> y = Softmax<axis = @k>(a)', r"'@k'"),
        ('x = Abs(a); y = Relu(a) -> y = Abs(a)', r"does not depend on \['x'\]"),
        ('-> y = Relu(a)', 'empty side'),
        ('y = Relu(a); y = Relu(a) -> y = Relu(a)', 'twice'),
        ('y = Softmax<axis = @a>(a) -> y = Relu(a)', r"\['a'\] name a tensor and an attribute"),
    ],
)
def test_a_bad_rule_is_refused_with_its_text(rule, message):
    with pytest.raises(UsageError, match=message):
        parse_rule(rule)


@pytest.mark.parametrize(
    ('rule', 'message'),
    [
        ('y = Relu(a) -> b = Relu(a); y = Relu(b)', 'would never end'),
        ('b = Relu(a); y = Neg(b) -> c = Neg(a); d = Relu(c); y = Neg(d)', 'would never end'),
        ('y = Rellu(a) -> y = Relu(a)', "'Rellu'; did you mean Relu"),
        ('y = Relu(a) -> y = Swish(a)', 'opset 20.*version_converter'),
        ('y = Relu(a) -> y = com.microsoft.Gelu(a)', "imports no opset of 'com.microsoft'"),
    ],
)
def test_a_rule_that_the_model_cannot_have_is_refused(rule, message):
    with pytest.raises(UsageError, match=message):
        replace(model_of('a = Relu(x) \n y = Neg(a)'), parse_rule(rule))


def test_rules_come_from_a_file_with_comments():
    lines = rule_lines(
        '# two\n\ny = Relu(a) -> y = Max(a, 0.0)\ny = Einsum<equation = "ij->ji">(a) -> y = Transpose(a)\n'
    )
    rules = [parse_rule(line) for line in lines]
    assert [rule.pattern.nodes[0].op_type for rule in rules] == ['Relu', 'Einsum']
    with pytest.raises(UsageError, match='no rule'):
        rule_lines('# nothing\n')


def test_an_einsum_with_an_arrow_in_its_text_is_replaced():
    model = model_of('y = Einsum<equation = "ij->ji">(x)', inputs='float[3,4] x', outputs='float[4,3] y')
    result, _ = replaced(model, 'y = Einsum<equation = "ij->ji">(a) -> y = Transpose(a)')
    assert is_exact(compare_models(model, result, [dict(x=np.arange(12, dtype=np.float32).reshape(3, 4))]))
