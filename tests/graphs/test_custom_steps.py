"""A model with operators that Python computes gives what it would give if ONNX Runtime had them."""

import numpy as np
import onnx

from mmdeploy_ext.graphs.custom_steps import SteppedModel

TEXT = """
<ir_version: 8, opset_import: ["": 17, "other": 1]>
agraph (float[2, 3] x, float[3] y) => (float[2, 3] sum, float[2, 3] last, int64[2, 1] places)
<float two = {2.0}>
{
   doubled = Mul(x, two)
   early = Relu(doubled)
   power = other.Power <exponent = 2, plugin_version = "1"> (doubled)
   constant = Constant <value = float[3] {1, 2, 3}> ()
   shifted = Add(power, constant)
   joined = other.Join (shifted, y)
   last = Add(joined, constant)
   best, place = other.Best (last)
   places = Cast <to = 7> (place)
   sum = Add(last, early)
}
"""


def best(values):
    return values.max(1, keepdims=True), values.argmax(1)[:, None].astype(np.int32)


KERNELS = {
    'Power': lambda values, exponent: values**exponent,
    'Join': lambda left, right: left - right,
    'Best': best,
}


def test_steps_give_what_one_engine_would_give():
    model = SteppedModel(
        onnx.parser.parse_model(TEXT), KERNELS, dtypes=dict(Best=('float32', 'int32')), threads=1
    )
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    y = np.float32([5, 6, 7])
    outputs = model.run(dict(x=x, y=y))
    last = (2 * x) ** 2 + np.float32([1, 2, 3]) - y + np.float32([1, 2, 3])
    np.testing.assert_allclose(outputs['last'], last, rtol=1e-6)
    np.testing.assert_allclose(outputs['sum'], last + np.maximum(2 * x, 0), rtol=1e-6)
    assert np.array_equal(outputs['places'][:, 0], last.argmax(1)) and outputs['places'].dtype == np.int64
