"""Any tensor of a graph, by ONNX Runtime."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mmdeploy_ext.core.errors import ConfigError, InferenceError, ModelFileError, ShapeError, UsageError
from mmdeploy_ext.graph.feeds import random_feeds
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.run import run
from toy_graphs import conv_net, model_of, random_graph, same, steps


@settings(max_examples=10, deadline=None)
@given(steps)
def test_every_tensor_is_what_the_reference_evaluator_computes(chosen):
    model = random_graph(chosen)
    feeds, names = random_feeds(model), Index(model).tensors
    found = run(model, feeds, names)
    expected = dict(
        zip(names, ReferenceEvaluator(with_all_outputs(model, names)).run(None, feeds), strict=True)
    )
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def with_all_outputs(model, names):
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.ClearField('output')
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


def test_optimisation_levels_agree_and_unknown_ones_are_refused():
    model = conv_net()
    feeds = random_feeds(model, 3)
    plain = run(model, feeds)
    for level in ('basic', 'extended', 'all'):
        np.testing.assert_allclose(
            run(model, feeds, optimization=level)['scores'], plain['scores'], rtol=1e-4
        )
    with pytest.raises(ConfigError, match='fast'):
        run(model, feeds, optimization='fast')


def test_a_model_over_the_limit_of_protobuf_runs_from_a_file(monkeypatch):
    model = conv_net()
    feeds = random_feeds(model)
    expected = run(model, feeds)
    monkeypatch.setattr(files, 'PROTOBUF_LIMIT', 100)
    same(run(model, feeds), expected)


def test_feeds_that_do_not_suit_are_refused_by_name():
    model = conv_net(('batch', 3, 8, 8))
    for feeds, words in (
        ({}, 'images'),
        ({'images': np.zeros((1, 3, 8, 8))}, "'images'.*float64.*float32"),
        ({'images': np.zeros((1, 3, 8, 9), 'f4')}, "'images'.*1x3x8x9"),
        ({'images': np.zeros((1, 3, 8, 8), 'f4'), 'imags': 0}, "'imags'"),
    ):
        with pytest.raises(ShapeError, match=words):
            run(model, feeds)
    with pytest.raises(UsageError, match=r"'scoresz'"):
        run(model, random_feeds(model), ['scoresz'])


def test_what_onnx_runtime_refuses_or_fails_on_is_an_error_of_ours():
    model = model_of([helper.make_node('Nothing', ['x'], ['z'], domain='nobody')], [('x', [1])], [('z', [1])])
    model.opset_import.add(domain='nobody', version=1)
    with pytest.raises(ModelFileError, match='Nothing'):
        run(model, {'x': np.zeros(1, 'f4')})
    model = conv_net(('batch', 3, 8, 8), baked=True)
    with pytest.raises(InferenceError, match='Reshape'):
        run(model, random_feeds(model, sizes={'batch': 2}))


def test_random_feeds_are_sensible_and_repeat():
    values = [
        helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', 3, 'h', 8]),
        helper.make_tensor_value_info('pixels', TensorProto.UINT8, [1000]),
        helper.make_tensor_value_info('indices', TensorProto.INT64, [50]),
        helper.make_tensor_value_info('mask', TensorProto.BOOL, [100]),
        helper.make_tensor_value_info('small', TensorProto.INT4, [100]),
    ]
    model = model_of([helper.make_node('Neg', ['images'], ['a'])], values, [])
    feeds = random_feeds(model, 1, {'h': 5})
    assert feeds['images'].shape == (1, 3, 5, 8) and feeds['images'].dtype == np.float32
    assert feeds['pixels'].max() > 200 and set(feeds['indices']) == set(range(8))
    assert 0 < feeds['mask'].mean() < 1 and set(feeds['small'].astype(int)) == set(range(8))
    same(random_feeds(model, 1, {'h': 5}), feeds)
    assert random_feeds(model, 1, {'images': [2, 3, 4, 8]})['images'].shape == (2, 3, 4, 8)
    assert not np.array_equal(random_feeds(model, 2, {'h': 5})['images'], feeds['images'])
    with pytest.raises(UsageError, match=r'\bw\b'):
        random_feeds(model, 1, {'w': 5})
