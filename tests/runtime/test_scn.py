"""ScnOnnx: the file alone, from points or voxels to the map."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import toy_seeded as seeded
import toy_sparse
from mmdeploy_ext.compat import single_thread
from mmdeploy_ext.contract.metadata import GRAPH_RULES, PREFIX
from mmdeploy_ext.core.errors import ConfigError, DataError, InferenceError, ModelFileError
from mmdeploy_ext.preprocess.points import VoxelRule, voxelise
from mmdeploy_ext.runtime.lidar import PillarsOnnx
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.sparse import buckets, engine, portable
from mmdeploy_ext.sparse.order import reorder

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


def test_threads_change_the_last_bits_at_most(path):
    features, coordinates = toy_sparse.voxels()
    with ScnOnnx(path, threads=1) as one, ScnOnnx(path, threads=3) as three:
        first, second = one.feeds(features, coordinates), three.feeds(features, coordinates)
        assert all(np.array_equal(first[name], second[name]) for name in first)
        expected = one.step(voxels=(features, coordinates))
        assert np.abs(three.step(voxels=(features, coordinates)) - expected).max() <= 1e-6


def test_no_voxel_is_an_empty_scene(path):
    with ScnOnnx(path) as runtime:
        dense = runtime.step(voxels=(np.zeros((0, 5), np.float32), np.zeros((0, 4), np.int32)))
    assert dense.shape == runtime.output_shape
    assert not dense.any()


def bad_voxels():
    features, coordinates = toy_sparse.voxels(rows=20)
    outside, twice, sample = coordinates.copy(), coordinates.copy(), coordinates.copy()
    outside[3, 2], twice[5], sample[1, 0] = 16, twice[2], 1
    nan = features.copy()
    nan[4, 1] = np.nan
    many = toy_sparse.voxels(rows=400)
    return [
        ((features, outside), 'row 3 is .* outside the grid'),
        ((features, twice), 'rows 2 and 5 are the same voxel'),
        ((features, sample), 'one sweep at a time'),
        ((nan, coordinates), 'features: row 4'),
        ((features[:, :4], coordinates), r'\(20, 4\), expected \(20, 5\)'),
        ((features[:9], coordinates), r'\(9, 5\), expected \(20, 5\)'),
        ((features, coordinates[:, 1:]), r'expected integers \(N, 4\)'),
        (many, f'got {len(many[0])}, the model takes at most 300'),
    ]


@pytest.mark.parametrize(('voxels', 'message'), bad_voxels())
def test_bad_voxels_are_refused(path, voxels, message):
    with ScnOnnx(path) as runtime, pytest.raises(DataError, match=message):
        runtime.step(voxels=voxels)


@pytest.mark.parametrize(
    ('sweep', 'message'),
    [
        (np.zeros((9, 4), np.float32), r'expected numbers \(P, 5\)'),
        (np.full((9, 5), np.nan, np.float32), '9 of 9'),
        (np.zeros((0, 5), np.float32), 'none of 0 is inside the range'),
        (np.full((9, 5), 1e4, np.float32), 'none of 9 is inside the range'),
    ],
)
def test_bad_sweeps_are_refused(path, sweep, message):
    with ScnOnnx(path) as runtime, pytest.raises(DataError, match=message):
        runtime.step(points=sweep)


def test_one_of_points_and_voxels(path, tmp_path):
    with ScnOnnx(path) as runtime, pytest.raises(DataError, match='either points or voxels'):
        runtime.step()


def test_files_that_are_something_else(path, tmp_path):
    import onnx

    with pytest.raises(ModelFileError, match='ONNX'):
        ScnOnnx(tmp_path / 'none.onnx')
    for opens in (ScnOnnx, PillarsOnnx):
        with pytest.raises(ConfigError, match=r"backend_config\.type='onnxruntime': expected one of "):
            opens(tmp_path / 'none.onnx', engine='onnxruntime')
    (tmp_path / 'cut.onnx').write_bytes(Path(path).read_bytes()[:5000])
    with pytest.raises(ModelFileError, match=r'cut\.onnx.*ONNX'):
        ScnOnnx(tmp_path / 'cut.onnx')
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == buckets.FACTS:
            entry.value = entry.value.replace('tables', 'tabels')
    onnx.save(model, tmp_path / 'damaged.onnx')
    with pytest.raises(ModelFileError, match=r"damaged\.onnx.*\(mm2onnx\.scn.*'tables'"):
        ScnOnnx(tmp_path / 'damaged.onnx')
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'plain.onnx')
    with pytest.raises(ModelFileError, match=r'plain\.onnx'):
        ScnOnnx(tmp_path / 'plain.onnx')


def test_an_engine_that_fails_is_an_inference_error(path):
    with ScnOnnx(path) as runtime:
        features, coordinates = toy_sparse.voxels()
        feeds = runtime.feeds(features, coordinates)
        name = next(name for name in feeds if name.endswith('.rows'))
        feeds[name] = feeds[name] + 10**6
        with pytest.raises(InferenceError, match='failed to run it'):
            runtime.session.run(feeds)


def test_it_needs_no_torch(path):
    code = (
        'import sys\n'
        'for name in ("torch", "mmcv", "spconv", "mmdet3d"): sys.modules[name] = None\n'
        'import numpy as np\n'
        'from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx\n'
        f'print(ScnOnnx({path!r}).step(points=np.full((4, 5), 0.5, np.float32)).shape)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(toy_sparse.bevfusion().output_shape), done.stderr


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
