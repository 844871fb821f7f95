"""Means of whole maps as means of rows and of those: the same numbers, closer to float64."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mmdeploy_ext.graphs.io.index import all_nodes
from mmdeploy_ext.graphs.passes.constants import split_global_means
from mmdeploy_ext.graphs.run import Runner


def make(rank, opset=17, has_rank=True):
    """y = global means of x (N, 4, ...), after a node through which the rank is inferred, or is not."""
    before = helper.make_node('Relu', ['x'], ['r'])
    nodes = [before, helper.make_node('GlobalAveragePool', ['r'], ['y'], 'pool')]
    shapes = dict(x=['n', 4, *'abc'[: rank - 2]], y=['n', 4, *[1] * (rank - 2)]) if has_rank else {}
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name))] for name in 'xy']
    graph = helper.make_graph(nodes, 'g', *ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8)


@pytest.mark.parametrize(('rank', 'opset'), [(4, 13), (4, 18), (5, 17)])
def test_the_numbers_stay_and_the_last_node_has_the_names(rank, opset):
    model = make(rank, opset)
    before = model.SerializeToString()
    result, changed = split_global_means(model)
    onnx.checker.check_model(result, full_check=True)
    assert changed and model.SerializeToString() == before
    assert [node.op_type for node in all_nodes(result)] == ['Relu', *['ReduceMean'] * (rank - 2)]
    assert result.graph.node[-1].name == 'pool'
    x = np.random.default_rng(0).normal(3, 2, (2, 4, *(30, 50, 7)[: rank - 2])).astype(np.float32)
    expected = np.maximum(x, 0).astype(np.float64).mean(tuple(range(2, rank)), keepdims=True)
    np.testing.assert_allclose(Runner(result).run(dict(x=x))['y'], expected, rtol=5e-7)


@pytest.mark.parametrize('model', [make(3), make(4, has_rank=False)], ids=['one axis', 'unknown rank'])
def test_other_nodes_stay(model):
    result, changed = split_global_means(model)
    assert result is model and not changed


def test_large_maps_are_closer_to_float64():
    x = np.random.default_rng(0).normal(0.3, 1, (1, 4, 448, 448)).astype(np.float32)
    expected = np.maximum(x, 0).astype(np.float64).mean((2, 3), keepdims=True)
    models = make(4), split_global_means(make(4))[0]
    errors = [np.abs(Runner(model).run(dict(x=x))['y'] / expected - 1).max() for model in models]
    assert errors[1] < 5e-7 < 1e-6 < errors[0]
