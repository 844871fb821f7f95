"""GridSample as gathers: the same values at any shape; other modes stay; a second run changes nothing."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample


def sampling(**attributes):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ('x', ['n', 'c', 'h', 'w']),
            ('grid', ['n', 'i', 'j', 2]),
            ('y', ['n', 'c', 'i', 'j']),
        )
    ]
    node = helper.make_node('GridSample', ['x', 'grid'], ['y'], **attributes)
    graph = helper.make_graph([node], 'g', values[:2], values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)


def run(model, feeds):
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider']).run(
        None, feeds
    )[0]


@pytest.mark.parametrize('shape', [(1, 1, 1, 1, 1, 1), (2, 3, 5, 4, 7, 2), (3, 2, 1, 6, 1, 9)])
def test_values_are_the_same_inside_at_the_border_and_outside(shape):
    n, c, h, w, i, j = shape
    draw = np.random.default_rng(0)
    grid = draw.uniform(-1.6, 1.6, (n, i, j, 2)).astype(np.float32)
    grid.reshape(-1, 2)[:3] = [[-1, -1], [1, 1], [0, -5]][: min(3, n * i * j)]
    feeds = dict(x=draw.standard_normal((n, c, h, w)).astype(np.float32), grid=grid)
    model = sampling(mode='bilinear', padding_mode='zeros', align_corners=0)
    replaced, changed = replace_grid_sample(model)
    assert changed and not any(node.op_type == 'GridSample' for node in replaced.graph.node)
    wanted = run(model, feeds)
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(run(replaced, feeds), wanted, atol=2e-6)
    again, changed = replace_grid_sample(replaced)
    assert not changed and again == replaced


@pytest.mark.parametrize('attributes', [dict(padding_mode='border'), dict(align_corners=1)])
def test_other_samplings_stay(attributes):
    assert not replace_grid_sample(sampling(**attributes))[1]
