"""The benchmark of sparse backbones: scenes, one small run of the tool, and refusals."""

import importlib.util
import json

import numpy as np
import pytest

import toy_scn_family
from mmdeploy_ext.bench.benchmark.sparse import ground
from mmdeploy_ext.cli import benchmark_app

GRID = (360, 320, 40)
# OpenVINO is an optional extra
ONNX_ENGINES = ['onnxruntime'] + ['openvino'] * bool(importlib.util.find_spec('openvino'))


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> tuple[str, str]:
    return toy_scn_family.write_model(tmp_path_factory.mktemp('model'))


def benchmark(*words) -> int:
    return benchmark_app.main([str(word) for word in words])


@pytest.mark.parametrize(('order', 'shape'), [('xyz', GRID), ('zyx', GRID[::-1])])
def test_a_scene_has_so_many_voxels_inside_the_grid(order, shape, count=777):
    coordinates = ground(shape, order, count)
    assert coordinates.shape == (count, 4) and coordinates.dtype == np.int32
    assert len(np.unique(coordinates, axis=0)) == count and not coordinates[:, 0].any()
    assert (coordinates[:, 1:] >= 0).all() and (coordinates[:, 1:] < shape).all()


def test_both_orders_are_the_same_scene():
    flipped = ground(GRID[::-1], 'zyx', 500)[:, [0, 3, 2, 1]]
    assert np.array_equal(flipped, ground(GRID, 'xyz', 500))


@pytest.mark.matrix
def test_a_small_run_measures_all_and_says_so(model, tmp_path, capsys):
    target, chart = tmp_path / 'b.json', tmp_path / 'b.png'
    np.savez(tmp_path / 's.npz', features=np.ones((40, 5)), coordinates=ground((24, 24, 41), 'xyz', 40))
    words = [*model, '--engines', ','.join(['torch', *ONNX_ENGINES]), '--voxels', 100, 400, '--max-iter', 2]
    words += ['--sweep', tmp_path / 's.npz', '--warmup', 1, '--json', target, '--chart', chart, '--no-memory']
    assert benchmark(*words) == 0, capsys.readouterr()
    content = json.loads(target.read_text())
    names = ['torch'] + [
        f'{engine}, {count}' for engine in ONNX_ENGINES for count in ('1 thread', '2 threads')
    ]
    assert [row['name'] for row in content['contenders']] == 3 * names
    inputs = list(dict.fromkeys(row['input'] for row in content['contenders']))
    assert inputs[:2] == ['synthetic 100', 'synthetic 400'] and inputs[2] == content['main_input']
    for row in content['contenders']:
        assert row['total_ms']['median'] > 0 and row['ratio_to_torch']
        assert row['parts_ms'].keys() == {'rulebook', 'network'} and min(row['parts_ms'].values()) > 0
    assert 'synthetic 400' in capsys.readouterr().out and chart.stat().st_size > 10_000
