"""ScnOnnx: the file alone, from points or voxels to the map."""

import dataclasses
import json

import numpy as np
import pytest

import toy_seeded as seeded
import toy_sparse
from mmdeploy_ext.exporting.sparse import portable
from mmdeploy_ext.exporting.sparse.fold import reorder
from mmdeploy_ext.runtime.preprocess.points import voxelise
from mmdeploy_ext.runtime.sparse import buckets, engine
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.metadata import GRAPH_RULES, PREFIX
from mmdeploy_ext.spec.preparation import VoxelRule
from mmdeploy_ext.upstream.compat import single_thread

RULE = VoxelRule((0.0, 0.0, 0.0, 2.4, 1.6, 2.4), (0.1, 0.1, 0.1), 10, 300, 'xyz', 5)


def write(path, graph=None, rule=RULE, form='buckets'):
    """Write a graph as the file of a sparse backbone."""
    values = dict(family='toy', form='portable', voxels=rule.to_json(), options={}, config='', edits=[])
    values |= dict.fromkeys(('config_sha256', 'checkpoint_sha256'), 64 * '0')
    values |= dict(versions={}, model_classes=[], rules=GRAPH_RULES)
    props = {PREFIX + name: json.dumps(value) for name, value in values.items()}
    model = portable.to_onnx(graph or toy_sparse.bevfusion(), form=form, metadata=props)
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp('scn') / 'lidar.onnx')


def points(count=2000, seed=0):
    rng = np.random.default_rng(seed)
    place = rng.uniform(-0.2, 2.6, (count, 3)) * [1, 0.7, 1]
    return np.concatenate([place, rng.standard_normal((count, 2))], 1).astype(np.float32)


def test_points_go_through_the_rule_of_the_file(path):
    with ScnOnnx(path, threads=1) as runtime:
        dense = runtime.step(points=points())
    features, coordinates = voxelise(points(), RULE)
    assert len(features) == RULE.max_voxels  # more voxels than the limit: the last ones are left out
    expected = engine.run(toy_sparse.bevfusion(), coordinates, features)
    assert dense.dtype == np.float32
    assert np.abs(dense - expected).max() <= 1e-5 * np.abs(expected).max()
    assert set(runtime.milliseconds) == {'voxelise', 'rulebook', 'network'}


@pytest.mark.parametrize('form', buckets.FORMS)
def test_a_file_of_the_other_order_gives_the_same_map(path, tmp_path, form):
    swapped = write(tmp_path / 'zyx.onnx', reorder(toy_sparse.bevfusion(), 'zyx'), form=form)
    with ScnOnnx(path) as xyz, ScnOnnx(swapped) as zyx:
        assert (xyz.order, zyx.order, zyx.form) == ('xyz', 'zyx', form)
        expected = xyz.step(points=points())
        assert np.abs(zyx.step(points=points()) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_voxel_is_an_empty_scene(path):
    with ScnOnnx(path) as runtime:
        dense = runtime.step(voxels=(np.zeros((0, 5), np.float32), np.zeros((0, 4), np.int32)))
    assert dense.shape == runtime.output_shape
    assert not dense.any()


@pytest.mark.matrix
def test_the_real_sweep_equals_spconv(tmp_path):
    golden = toy_sparse.golden('input_real_bevfusion')
    if golden is None:
        pytest.skip('skipped: ../shared/golden/scn not found')
    import torch

    scn_nets = pytest.importorskip('scn_nets')
    features, coordinates = golden
    net = scn_nets.bevfusion()
    seeded.fill_sparse_module(net, toy_sparse.PREFIX)
    with single_thread(), torch.no_grad():
        expected = net(torch.from_numpy(features), torch.from_numpy(coordinates), 1).numpy()
    graph = toy_sparse.full()
    rule = dataclasses.replace(RULE, max_voxels=160000)
    with ScnOnnx(write(tmp_path / 'full.onnx', graph, rule), threads=2) as runtime:
        dense = runtime.step(voxels=(features, coordinates))
    assert np.abs(dense - expected).max() <= 1e-4 * np.abs(expected).max()
