"""The other coordinate order is the same network, and there and back is the same graph."""

import dataclasses

import numpy as np
import pytest
import torch

import scn_nets
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.ir import differences


@pytest.fixture(scope='module')
def graphs():
    torch.manual_seed(10)  # by other weights float32 sums of another order differ by more
    zyx = trace(scn_nets.second((9, 20, 24)), order='zyx', spatial_shape=(9, 20, 24), in_channels=4)
    return dict(xyz=scn_nets.traced_small(), zyx=zyx)


@pytest.mark.parametrize('native', ['xyz', 'zyx'])
def test_both_orders_give_the_same_dense_output(graphs, native):
    graph = fold(graphs[native])
    turned = reorder(graph, 'zyx' if native == 'xyz' else 'xyz')
    features, coordinates = scn_nets.sweep(graph.spatial_shape, 400, graph.in_channels)
    expected = engine.run(graph, coordinates, features)
    got = engine.run(turned, np.ascontiguousarray(coordinates[:, [0, 3, 2, 1]]), features)
    assert expected.any()
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(('native', 'folded'), [('xyz', True), ('zyx', False)])
def test_there_and_back_is_the_same_graph(graphs, native, folded):
    graph = fold(graphs[native]) if folded else graphs[native]
    before = dataclasses.replace(graph)
    turned = reorder(graph, 'zyx' if native == 'xyz' else 'xyz')
    assert turned.order != graph.order
    assert differences(reorder(turned, graph.order), graph) == []
    assert differences(graph, before) == []
    assert reorder(graph, graph.order) is graph
