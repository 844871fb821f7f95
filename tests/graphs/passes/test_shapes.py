"""Other input shapes: what is inferred behind them, and where it does not hold."""

import numpy as np
import onnx
import pytest
from onnx import helper

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.passes.shapes import set_by_text, set_shapes
from mmdeploy_ext.graphs.run import Runner, random_feeds
from toy_graphs import as_in_whole, model_of


def shape_arithmetic(opset):
    """[batch, 3, h, w] -> [batch, h*w, 3] by way of Shape, as exporters write it."""
    number = onnx.numpy_helper.from_array
    constants = [
        number(np.array(0), 'zero'),
        number(np.array([-1, 3]), 'rest'),
        number(np.array([0]), 'first'),
    ]
    nodes = [
        helper.make_node('Transpose', ['x'], ['t'], perm=[0, 2, 3, 1]),
        helper.make_node('Shape', ['t'], ['s']),
        helper.make_node('Gather', ['s', 'zero'], ['n']),
        helper.make_node(
            'Unsqueeze',
            ['n'] if opset < 13 else ['n', 'first'],
            ['b'],
            **({'axes': [0]} if opset < 13 else {}),
        ),
        helper.make_node('Concat', ['b', 'rest'], ['sizes'], axis=0),
        helper.make_node('Reshape', ['t', 'sizes'], ['z']),
    ]
    return model_of(nodes, [('x', ['batch', 3, 'h', 'w'])], [('z', ['batch', 'n', 3])], constants, opset)


@pytest.mark.parametrize('opset', [11, 17])
def test_shapes_that_are_fixed_reach_every_tensor(opset):
    model, batch, height, width = shape_arithmetic(opset), 2, 5, 7
    fixed = set_shapes(model, {'x': [batch, 3, height, width]})
    onnx.checker.check_model(fixed, full_check=True)
    assert types.shape(fixed.graph.output[0].type) == [batch, height * width, 3]
    names = [name for node in model.graph.node for name in node.output]
    found = Runner(fixed, names).run(random_feeds(fixed))
    inferred = types.infer(fixed)
    assert {name: types.shape(inferred[name]) for name in names} == {
        name: list(value.shape) for name, value in found.items()
    }
    as_in_whole(model, fixed)
    assert set_shapes(fixed, {'x': [batch, 3, height, width]}) == fixed
    assert set_shapes(model, axes=dict(batch=batch, h=height, w=width)) == fixed


def test_some_axes_can_stay_open_and_keep_their_names():
    fixed = set_by_text(shape_arithmetic(17), ['batch=2'])
    assert types.text(fixed.graph.input[0].type) == 'float[2,3,h,w]'
    assert types.text(fixed.graph.output[0].type) == 'float[2,n,3]'
    renamed = set_by_text(shape_arithmetic(17), ['batch=images'])
    assert types.shape(renamed.graph.output[0].type)[0] == 'images'


def test_shapes_that_no_node_can_work_with_are_refused_by_its_name():
    weight = onnx.numpy_helper.from_array(np.ones((4, 2), np.float32), 'w')
    node = helper.make_node('MatMul', ['x', 'w'], ['z'], name='product')
    model = model_of([node], [('x', ['n', 4])], [('z', ['n', 2])], [weight])
    with pytest.raises(ModelFileError, match='product'):
        set_by_text(model, ['x=3x5'])
