"""The float16 pass: where it writes float16, where float32 stays, and what it refuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.graphs.output_comparison import spec_of
from mmdeploy_ext.graphs.passes.fp16 import exceeds_half, to_fp16
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec
from toy_engines import parse

ROWS, COLUMNS = 4, 8


SHAPE = ROWS, COLUMNS
SPEC = GraphSpec(
    'toy',
    (TensorSpec('features', 'float32', SHAPE), TensorSpec('points', 'float32', SHAPE, single=True)),
    (TensorSpec('hidden', 'float32', SHAPE), TensorSpec('boxes', 'float32', SHAPE, single=True)),
)


def make_model(scale=1.0):
    """hidden = softmax(features W1 + sin(points) W2); boxes = hidden W3 + points."""
    body = """
      [sin] encoded = Sin(points) [first] a = MatMul(features, W1) [second] b = MatMul(encoded, W2)
      [add] c = Add(a, b) [softmax] hidden = Softmax<axis = -1>(c)
      [last] offset = MatMul(hidden, W3) [shift] boxes = Add(offset, points)
    """
    model = parse(body, 'float[4,8] features, float[4,8] points', 'float[4,8] hidden, float[4,8] boxes')
    rng = np.random.default_rng(0)
    for name in ('W1', 'W2', 'W3'):
        weight = (scale * rng.normal(size=(COLUMNS, COLUMNS))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def types_of(model):
    """Return node name -> element type of its first output."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {node.name: types[node.output[0]] for node in model.graph.node}


def run(model):
    rng = np.random.default_rng(1)
    feeds = dict(
        features=rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
        points=rng.uniform(-50, 50, (ROWS, COLUMNS)).astype(np.float32),
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, feeds)


def test_what_comes_from_points_and_what_gives_boxes_is_float32_and_the_rest_float16():
    half = to_fp16(make_model(), SPEC)
    types = types_of(half)
    assert {types[name] for name in ('first', 'second', 'add', 'softmax')} == {TensorProto.FLOAT16}
    assert {types[name] for name in ('sin', 'last', 'shift')} == {TensorProto.FLOAT}
    stored = {value.name: value.data_type for value in half.graph.initializer}
    assert stored == {'W1/half': TensorProto.FLOAT16, 'W2/half': TensorProto.FLOAT16, 'W3': TensorProto.FLOAT}


def test_what_float64_gives_stays_float32_up_to_the_first_product():
    """BEVDet's cells of points: in float16 one of 25 points lay in the neighbouring cell."""
    model = make_model()
    model.graph.node[0].CopyFrom(helper.make_node('Cast', ['points'], ['exact'], 'exact', to=11))
    nodes = [
        helper.make_node('MatMul', ['exact', 'turn'], ['turned'], 'turned'),
        helper.make_node('Cast', ['turned'], ['rounded'], 'rounded', to=1),
        helper.make_node('Sub', ['rounded', 'low'], ['encoded'], 'shifted'),
    ]
    rest = list(model.graph.node[1:])
    del model.graph.node[1:]
    model.graph.node.extend([*nodes, *rest])
    arrays = dict(turn=np.eye(COLUMNS), low=np.float32([-51.2]))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    types = types_of(to_fp16(model, SPEC))
    assert types['turned'] == TensorProto.DOUBLE and types['shifted'] == TensorProto.FLOAT
    assert types['second'] == TensorProto.FLOAT16


def test_it_is_a_valid_graph_with_the_same_names_that_gives_nearly_the_same():
    half = to_fp16(make_model(), SPEC)
    onnx.checker.check_model(half, full_check=True)
    for field in ('input', 'output'):
        assert getattr(half.graph, field) == getattr(make_model().graph, field)
    for found, wanted in zip(run(half), run(make_model()), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_a_weight_beyond_float16_is_refused_by_name():
    with pytest.raises(ExportError, match=r"constant 'W\d'.*65504"):
        to_fp16(make_model(scale=1e5), SPEC)


def test_an_input_with_a_default_is_cast_and_not_frozen():
    """Its initializer is what counts where nothing is fed, and only there."""
    model = make_model()
    default = np.zeros((ROWS, COLUMNS), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(default, 'features'))
    half = to_fp16(model, SPEC)
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=['CPUExecutionProvider'])
    feeds = dict(points=default, features=default + 1)
    fed, left_out = (session.run(['hidden'], given)[0] for given in (feeds, dict(points=default)))
    assert np.abs(fed - left_out).max() > 0.01


def test_scales_of_a_resize_stay_float32_and_65504_fits():
    body = '[up] a = Resize<mode = "nearest">(x, , scales) [first] y = MatMul(a, W)'
    model = parse(body, 'float[1,8] x', 'float[1,16] y')
    for name, value in dict(W=np.eye(2 * COLUMNS), scales=[1, 2]).items():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    half = to_fp16(model, spec_of(model))
    types = types_of(half)
    assert types['up'] == types['first'] == TensorProto.FLOAT16
    scales = next(tensor for tensor in half.graph.initializer if tensor.name.startswith('scales'))
    assert scales.data_type == TensorProto.FLOAT
    exceeds = [exceeds_half(np.float32([value])) for value in (65504, 65505, -65505, np.inf)]
    assert exceeds == [False, True, True, False]
