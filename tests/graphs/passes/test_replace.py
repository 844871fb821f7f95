"""Patterns to patterns: where a rule fires and where it does not."""

import onnx
import onnx.parser
import pytest

from mmdeploy_ext.graphs.output_comparison import compare_models
from mmdeploy_ext.graphs.passes.replace import replace
from mmdeploy_ext.graphs.run import random_feeds


def model_of(body, outputs='float[N,4] y'):
    text = f'<ir_version: 8, opset_import: ["" : 20]> g (float[N,4] x) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text)


def swish(op, a):
    return op.Mul(a, op.Sigmoid(a))


def by_exponential(op, a):
    exponential = op.Exp(a)
    return op.Mul(op.Div(a, op.Add(exponential, op.Constant(value_float=1.0))), exponential)


def test_a_pattern_is_replaced_in_every_place_also_with_swapped_operands():
    model = model_of('s = Sigmoid(x) \n a = Mul(x, s) \n t = Sigmoid(a) \n y = Mul(t, a)')
    before = model.SerializeToString()
    result, count = replace(model, swish, by_exponential)
    assert count == 2 and model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    operators = [node.op_type for node in result.graph.node]
    assert 'Sigmoid' not in operators and operators.count('Exp') == 2
    assert [value.name for value in result.graph.output] == ['y']
    rows = compare_models(model, result, [random_feeds(model)], 1e-6)
    assert rows and all(row.passed for row in rows)
    assert replace(result, swish, by_exponential)[1] == 0


@pytest.mark.parametrize(
    ('body', 'outputs'),
    [
        ('s = Sigmoid(x) \n m = Mul(x, s) \n y = Add(m, s)', 'float[N,4] y'),
        ('s = Sigmoid(x) \n y = Mul(x, s)', 'float[N,4] y, float[N,4] s'),
    ],
)
def test_a_place_whose_inner_result_is_used_elsewhere_is_kept(body, outputs):
    model = model_of(body, outputs)
    assert replace(model, swish, by_exponential) == (model, 0)
