"""The benchmark of sparse backbones: scenes, one small run of the tool, and refusals."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

import toy_scn_family
from mmdeploy_ext.benchmark import measure
from mmdeploy_ext.benchmark.sparse import SparseBenchmark, surfaces, synthetic_sets
from mmdeploy_ext.cli import benchmark_app
from mmdeploy_ext.cli.benchmark_app import main
from mmdeploy_ext.sparse.rulebook import Level
from toy_rulebook import submanifold_table

GRID = (360, 320, 40)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> tuple[str, str]:
    return toy_scn_family.write_model(tmp_path_factory.mktemp('model'))


def benchmark(*words) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize(('typed', 'seconds'), [([], 45), (['--max-seconds', '0'], 0)])
def test_zero_seconds_run_all_rounds_also_where_that_is_not_the_default(monkeypatch, typed, seconds):
    given, made = [], object.__new__(SparseBenchmark)
    made.args = benchmark_app.build_parser().parse_args(['config.py', 'model.pth', *typed])
    made.ranks = SimpleNamespace(size=1, rank=0, gather=lambda value: [value])
    monkeypatch.setattr(SparseBenchmark, 'groups', lambda self: [[]])
    monkeypatch.setattr(measure, 'interleave', lambda *_, seconds, **__: given.append(seconds) or {})
    assert made._measure([]) == [{}] and given == [seconds]


# ---- scenes


@pytest.mark.parametrize(('order', 'shape'), [('xyz', GRID), ('zyx', GRID[::-1])])
@pytest.mark.parametrize('count', [1, 777, 20000])
def test_a_scene_has_so_many_voxels_inside_the_grid(order, shape, count):
    coordinates = surfaces(shape, order, count)
    assert coordinates.shape == (count, 4) and coordinates.dtype == np.int32
    assert len(np.unique(coordinates, axis=0)) == count and not coordinates[:, 0].any()
    assert (coordinates[:, 1:] >= 0).all() and (coordinates[:, 1:] < shape).all()


def test_both_orders_are_the_same_scene():
    flipped = surfaces(GRID[::-1], 'zyx', 500)[:, [0, 3, 2, 1]]
    assert np.array_equal(flipped, surfaces(GRID, 'xyz', 500))


def test_a_grid_without_room_gives_fewer_voxels():
    assert len(surfaces((4, 4, 4), 'xyz', 1000)) == 32


def test_a_voxel_has_as_many_neighbours_in_a_small_scene_as_in_a_large_one():
    found = []
    for count in (2000, 16000):
        level = Level(surfaces((1440, 1440, 40), 'xyz', count), (1440, 1440, 40))
        found.append((submanifold_table(level, (3, 3, 3)) < count).sum() / count)
    assert 3 < found[0] < 27 and found[1] == pytest.approx(found[0], rel=0.15)


def test_numbers_that_a_grid_has_no_room_for_have_one_scene_together():
    deployment = SimpleNamespace(
        settings=SimpleNamespace(spatial_shape=(4, 4, 4), order='xyz', in_channels=5)
    )
    sets = synthetic_sets(deployment, (10, 1000, 2000))
    assert [(len(voxels.features), voxels.name) for voxels in sets] == [
        (10, 'synthetic 10'),
        (32, 'synthetic 32'),
    ]


# ---- the tool

# OpenVINO is an optional extra
ONNX_ENGINES = ['onnxruntime'] + ['openvino'] * bool(importlib.util.find_spec('openvino'))


@pytest.mark.matrix
def test_a_small_run_measures_all_and_says_so(model, tmp_path, capsys):
    result, chart = tmp_path / 'b.json', tmp_path / 'b.png'
    np.savez(tmp_path / 's.npz', features=np.ones((40, 5)), coordinates=surfaces((24, 24, 41), 'xyz', 40))
    words = [*model, '--engines', ','.join(['torch', *ONNX_ENGINES]), '--voxels', 100, 400, '--max-iter', 2]
    words += ['--sweep', tmp_path / 's.npz', '--warmup', 1, '--json', result, '--chart', chart, '--no-memory']
    assert benchmark(*words) == 0, capsys.readouterr()
    content = json.loads(result.read_text())
    assert [entry['voxels'] for entry in content['sets']] == [100, 400, 40]
    names = [row['name'] for row in content['sets'][0]['contenders']]
    assert names == [
        'torch',
        *(f'{engine}, {threads}' for engine in ONNX_ENGINES for threads in ('1 thread', '2 threads')),
    ]
    for row in (row for entry in content['sets'] for row in entry['contenders']):
        assert row['total_ms']['median'] > 0 and min(row['parts_ms'].values()) > 0
        assert row['parts_ms'].keys() == {'rulebook', 'network'} and row['ratio_to_torch']
    assert 'synthetic 400: 400 voxels' in capsys.readouterr().out
    assert chart.stat().st_size > 10_000


@pytest.mark.matrix
def test_memory_is_measured_in_processes_of_their_own(model, tmp_path):
    from mmdeploy_ext.benchmark import memory

    if not memory.is_supported():
        pytest.skip('no figures of memory here')
    result = tmp_path / 'b.json'
    words = [*model, '--engines', 'onnxruntime', '--voxels', 300, '--max-iter', 1, '--threads', 1]
    assert benchmark(*words, '--json', result) == 0
    row = json.loads(result.read_text())['sets'][0]['contenders'][0]
    assert row['memory']['peak_mb'] > 0 and row['ratio_to_torch'] is None


BAD = {
    'images': (['--images', 'x.jpg'], 'sparse LiDAR backbones do not have it'),
    'no voxels': (['--voxels', '0'], 'positive'),
    'no sweep': (['--sweep', 'none.bin'], 'no such file'),
    'unknown engine': (['--engines', 'tensorflow'], 'expected some of'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_meant_is_refused(model, case, capsys):
    words, message = BAD[case]
    assert benchmark(*model, *words) == 2
    assert message in capsys.readouterr().err


def test_a_given_file_is_measured_and_another_is_refused(model, tmp_path, capsys):
    from mmdeploy_ext.families import backbone_files as deploy
    from mmdeploy_ext.families.base import BACKBONE
    from mmdeploy_ext.families.model import load

    path, dialect = str(tmp_path / 'p.onnx'), str(tmp_path / 'l.onnx')
    deployment = load(*model, product=BACKBONE)
    deploy.export_file(deployment, deployment.family.choose(target='portable', order='zyx'), path)
    deploy.export_file(deployment, deployment.family.choose(order='xyz'), dialect)
    words = [*model, '--engines', ','.join(ONNX_ENGINES), '--voxels', 100, '--max-iter', 1, '--no-memory']
    assert benchmark(*words, '--onnx', path) == 0
    capsys.readouterr()
    assert benchmark(*words, '--onnx', dialect) == 2
    assert benchmark(*words, '--onnx', path, path) == 2
    assert capsys.readouterr().err.count('error: ') == 2
