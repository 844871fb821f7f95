"""The float16 pass: where it writes float16, where float32 stays, and what it refuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.graph.passes.fp16 import to_fp16

ROWS, COLUMNS = 4, 8


def spec(feature_dtype='float32'):
    """An image-like input, points, one output of features and one of boxes."""
    return GraphSpec(
        'toy',
        (
            TensorSpec('features', feature_dtype, (ROWS, COLUMNS)),
            TensorSpec('points', 'float32', (ROWS, COLUMNS), single=True),
        ),
        (
            TensorSpec('hidden', feature_dtype, (ROWS, COLUMNS)),
            TensorSpec('boxes', 'float32', (ROWS, COLUMNS), single=True),
        ),
    )


def make_model(scale=1.0, opset=17):
    """hidden = softmax(features W1 + sin(points) W2); boxes = hidden W3 + points."""
    rng = np.random.default_rng(0)
    weights = {
        f'W{index}': (scale * rng.normal(size=(COLUMNS, COLUMNS))).astype(np.float32) for index in (1, 2, 3)
    }
    nodes = [
        helper.make_node('Sin', ['points'], ['encoded'], 'sin'),
        helper.make_node('MatMul', ['features', 'W1'], ['a'], 'first'),
        helper.make_node('MatMul', ['encoded', 'W2'], ['b'], 'second'),
        helper.make_node('Add', ['a', 'b'], ['c'], 'add'),
        helper.make_node('Softmax', ['c'], ['hidden'], 'softmax', axis=-1),
        helper.make_node('MatMul', ['hidden', 'W3'], ['offset'], 'last'),
        helper.make_node('Add', ['offset', 'points'], ['boxes'], 'shift'),
    ]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, COLUMNS]) for name in names]
        for names in (('features', 'points'), ('hidden', 'boxes'))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, 'g', *values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8)


def types_of(model):
    """Return node name -> element type of its first output."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {node.name: types[node.output[0]] for node in model.graph.node}


def run(model, dtype=np.float32):
    rng = np.random.default_rng(1)
    feeds = dict(
        features=rng.normal(size=(ROWS, COLUMNS)).astype(dtype),
        points=rng.uniform(-50, 50, (ROWS, COLUMNS)).astype(np.float32),
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, feeds)


def test_what_comes_from_points_and_what_gives_boxes_is_float32_and_the_rest_float16():
    half = to_fp16(make_model(), spec())
    types = types_of(half)
    assert {types[name] for name in ('first', 'second', 'add', 'softmax')} == {TensorProto.FLOAT16}
    assert {types[name] for name in ('sin', 'last', 'shift')} == {TensorProto.FLOAT}
    stored = {value.name: value.data_type for value in half.graph.initializer}
    assert stored == {'W1/half': TensorProto.FLOAT16, 'W2/half': TensorProto.FLOAT16, 'W3': TensorProto.FLOAT}


def test_it_is_a_valid_graph_with_the_same_names_that_gives_nearly_the_same():
    half = to_fp16(make_model(), spec())
    onnx.checker.check_model(half, full_check=True)
    for field in ('input', 'output'):
        assert getattr(half.graph, field) == getattr(make_model().graph, field)
    for found, wanted in zip(run(half), run(make_model()), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_a_weight_beyond_float16_is_refused_by_name():
    with pytest.raises(ExportError, match=r"constant 'W\d'.*65504"):
        to_fp16(make_model(scale=1e5), spec())


def test_an_input_with_a_default_is_cast_and_not_frozen():
    """Its initializer is what counts where nothing is fed, and only there."""
    model = make_model()
    default = np.zeros((ROWS, COLUMNS), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(default, 'features'))
    half = to_fp16(model, spec())
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=['CPUExecutionProvider'])
    feeds = dict(points=default, features=default + 1)
    fed, left_out = (session.run(['hidden'], given)[0] for given in (feeds, dict(points=default)))
    assert np.abs(fed - left_out).max() > 0.01
