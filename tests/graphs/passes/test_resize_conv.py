"""Convolutions move before an enlargement: the same numbers, and only where fewer products are left."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.passes.resize_conv import convolve_before_resize
from mmdeploy_ext.graphs.run import Runner

SMALL = 5, 7


def make(large=(10, 14), kernel=(3, 3), beside=0, channels=64, outputs=8, by_scales=False, read_twice=False,
         mode='linear', kind='half_pixel', **attributes):  # fmt: skip
    """y = Conv of the enlarged x (n, channels, 5, 7), and of z of the large size with `beside` channels."""
    random = np.random.default_rng(0)
    scales = [1, 1, large[0] / SMALL[0], large[1] / SMALL[1]]
    arrays = dict(
        weight=random.normal(0, 0.05, (outputs, channels + 2 * beside, *kernel)).astype(np.float32),
        bias=random.normal(0, 1, outputs).astype(np.float32),
        sizes=np.array([2, channels, *large]),
        scales=np.float32(scales),
    )
    resize = ['x', '', 'scales'] if by_scales else ['x', '', '', 'sizes']
    nodes = [
        helper.make_node(
            'Resize', resize, ['large'], 'resize', mode=mode, coordinate_transformation_mode=kind
        ),
        helper.make_node('Concat', ['z', 'large', 'z'], ['both'], 'concat', axis=1),
        helper.make_node('Identity', ['bias'], ['shared']),
        helper.make_node(
            'Conv', ['both' if beside else 'large', 'weight', 'shared'], ['y'], 'conv', **attributes
        ),
    ]
    if not beside:
        del nodes[1]
    batch = 'n' if by_scales else 2
    ends = [['x', [batch, channels, *SMALL]], ['z', [2, beside, *large]]][: 2 if beside else 1]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
    read = ['y', 'large'] if read_twice else ['y']
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [*'abcd']) for name in read]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, 'g', inputs, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


@pytest.mark.parametrize(
    'settings',
    [
        dict(kind='align_corners', pads=[1, 1, 1, 1]),
        dict(kind='half_pixel', pads=[1, 1, 1, 1]),
        dict(kind='pytorch_half_pixel', pads=[1, 1, 1, 1], by_scales=True),
        dict(kind='asymmetric', kernel=(1, 1), by_scales=True),
        dict(large=(11, 13), kind='align_corners', pads=[2, 0, 1, 3], kernel=(3, 5)),
        dict(large=(13, 15), pads=[0, 0, 0, 0], strides=[1, 1]),
        dict(large=(20, 28), pads=[2, 2, 2, 2], strides=[2, 1], dilations=[2, 1]),
        dict(large=(15, 21), pads=[1, 1, 1, 1], beside=3),
        dict(large=(15, 21), pads=[1, 1, 1, 1], read_twice=True),
    ],
    ids=str,
)
def test_the_numbers_stay(settings):
    model = make(**settings)
    before = model.SerializeToString()
    result, changed = convolve_before_resize(model)
    onnx.checker.check_model(result, full_check=True)
    assert changed and model.SerializeToString() == before
    assert ('Resize' in {node.op_type for node in result.graph.node}) == bool(settings.get('read_twice'))
    names = {name for node in result.graph.node for name in node.input}
    assert {tensor.name for tensor in result.graph.initializer} <= names | {'sizes', 'scales'}
    random = np.random.default_rng(1)
    shapes = {
        value.name: [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    feeds = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    expected, found = Runner(model).run(feeds), Runner(result).run(feeds)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5)


@pytest.mark.parametrize(
    'settings',
    [
        dict(large=(5, 7), pads=[1, 1, 1, 1]),  # as many products
        dict(channels=1, pads=[1, 1, 1, 1]),  # the interpolation costs more
        dict(mode='nearest', kind='asymmetric', pads=[1, 1, 1, 1]),
        dict(kind='tf_crop_and_resize', pads=[1, 1, 1, 1]),
    ],
    ids=str,
)
def test_a_convolution_stays_that_gains_nothing_or_is_behind_another_resize(settings):
    model = make(**settings)
    assert convolve_before_resize(model) == (model, False)
