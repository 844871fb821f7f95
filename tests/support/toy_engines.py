"""The package of TensorRT or a skip, and small graphs from text."""

import onnx.parser
import pytest

from mmdeploy_ext.engines.tensorrt import package as tensorrt_package


def package(name='tensorrt-rtx'):
    """Return the installed package; skip where it is not."""
    if not tensorrt_package.is_installed(name):
        pytest.skip(f'skipped: {name} is an optional extra: make env-tensorrt')
    return tensorrt_package.find_package(name)


def parse(body, inputs='float[2,3] x', outputs='float[2,3] y', opset=17, constants=''):
    """Make a model from ONNX's text form."""
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {constants} {{ {body} }}'
    )
    return onnx.parser.parse_model(text)


def two_outputs(batch='2'):
    """Make a net whose outputs `sum` and `product` have the same shape, so that a swap would not be seen."""
    shape = f'float[{batch},3]'
    body = '[add] sum = Add(x, two) [mul] product = Mul(x, two)'
    constants = '<float two = {2}>'
    return parse(body, f'{shape} x', f'{shape} sum, {shape} product', constants=constants)
