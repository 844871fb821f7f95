"""The numpy engine against dense convolution, spconv and the goldens."""

import numpy as np
import pytest

import scn_goldens
import toy_sparse
from mmdeploy_ext.exporting.sparse.fold import reorder
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.runtime.sparse.plan import plan_of
from mmdeploy_ext.runtime.sparse.rulebook import build


def relative(found, expected):
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)


@pytest.mark.parametrize('order', ['xyz', 'zyx'])
@pytest.mark.parametrize('rows', [1, 200])
def test_every_layer_equals_dense_convolution(order, rows):
    graph = reorder(toy_sparse.bevfusion(), order)
    features, coordinates = toy_sparse.voxels(rows=rows)
    coordinates = coordinates if order == 'xyz' else coordinates[:, [0, 3, 2, 1]]
    rulebook, layers = build(plan_of(graph), coordinates), {}
    dense = engine.run(graph, coordinates, features, layers.__setitem__, rulebook=rulebook)
    expected = toy_sparse.dense_reference(graph, coordinates, features)
    assert list(layers) == [node.name for node in graph.nodes]
    for node in graph.nodes:
        if node.output not in rulebook.level_of:
            continue
        _, a, b, c = rulebook.level(node.output).coordinates.T
        values = expected[node.output][0]
        assert relative(layers[node.name], values[:, a, b, c].T) < 1e-5, node.name
        assert np.abs(values).sum() == pytest.approx(np.abs(values[:, a, b, c]).sum()), node.name
    assert dense.dtype == np.float32
    assert relative(dense, expected[graph.output]) < 1e-5


def test_no_voxel_gives_zeros():
    graph = toy_sparse.bevfusion()
    dense = engine.run(graph, np.zeros((0, 4), np.int32), np.zeros((0, 5), np.float32))
    assert dense.shape == graph.output_shape
    assert not dense.any()


def test_an_unfolded_graph_equals_the_folded_one():
    features, coordinates = toy_sparse.voxels()
    plain = engine.run(toy_sparse.bevfusion(folded=False), coordinates, features)
    assert relative(plain, engine.run(toy_sparse.bevfusion(), coordinates, features)) < 1e-5


def test_the_synthetic_golden():
    features, coordinates = scn_goldens.voxels('input_synth')
    dense = engine.run(toy_sparse.full(), coordinates, features)
    expected = np.load(scn_goldens.existing('numeric/dense_synth_w32.npz'))
    found = dense.reshape(-1)[expected['flat_index']]
    assert relative(found, expected['value']) < 1e-5
    active = np.unpackbits(expected['active_bev'])[: 180 * 180].astype(bool)
    assert np.array_equal((dense[0] != 0).any(0).reshape(-1), active)
    assert np.abs(np.abs(dense[0]).max((1, 2)) - expected['channel_absmax']).max() < 1e-4
