"""Any tensor of a graph, by ONNX Runtime."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.graph.feeds import random_feeds
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.run import run
from toy_graphs import conv_net, random_graph, steps


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
