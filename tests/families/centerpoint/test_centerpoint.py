"""CenterPoint on ONNX Runtime: points to boxes without PyTorch, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

import toy_centerpoint
from mmdeploy_ext.cli import run_app
from mmdeploy_ext.core.errors import DataError, InferenceError, ModelFileError
from mmdeploy_ext.families.centerpoint.runtime import CenterPointOnnx
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.points import read_points
from toy_atss import REPO


@pytest.fixture(scope='module')
def graphs():
    return toy_centerpoint.exported()[1]


@pytest.fixture(scope='module')
def runtime(graphs):
    with CenterPointOnnx(graphs) as opened:
        yield opened


def test_boxes_equal_pytorchs(runtime):
    deployment = toy_centerpoint.exported()[0]
    points = toy_centerpoint.sweep(7, 600)
    expected = deployment.family.reference(deployment.model).step(Sweep(points)).detections
    found = runtime.detect(points)
    assert len(found) == len(expected) > 5
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (np.diff(found.scores) <= 0).all()


def test_points_of_any_float_type_and_out_of_range_are_taken(runtime):
    points = toy_centerpoint.sweep(7)
    far = points.copy()
    far[:, :3] += 1000
    expected = runtime.detect(points)
    found = runtime.detect(np.concatenate([points, far]).astype(np.float64))
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_a_sweep_is_timed_by_part(runtime):
    before = dict(runtime.seconds)
    runtime.detect(toy_centerpoint.sweep(1))
    assert all(runtime.seconds[part] > before[part] for part in ('backbone', 'head', 'boxes'))


@pytest.mark.parametrize(
    'points, expected',
    [
        (np.zeros((3, 4), np.float32), r'\(3, 4\), expected numbers \(P, 5\)'),
        (np.zeros((15,), np.float32), r'expected numbers \(P, 5\)'),
        (np.zeros((0, 5), np.float32), 'empty'),
        (np.full((3, 5), np.nan, np.float32), '3 of 3 have values that are not finite'),
        (np.array([[1, 1, 0, np.inf, 0], [1, 1, 0, 0, 0]], np.float32), '1 of 2'),
        (np.zeros((3, 5), complex), 'complex128'),
        (np.full((3, 5), 900, np.float32), 'range'),
    ],
    ids=['four values', 'flat', 'empty', 'NaN', 'infinite', 'complex', 'all outside'],
)
def test_points_that_cannot_be_are_refused_by_both_engines(runtime, points, expected):
    deployment = toy_centerpoint.exported()[0]
    with pytest.raises(DataError, match=expected):
        runtime.detect(points)
    with pytest.raises(DataError, match=expected):
        deployment.family.reference(deployment.model).step(Sweep(points))


@pytest.mark.parametrize(
    'content, expected', [(b'', 'empty'), (b'0123', 'multiple of 20'), (None, 'cannot be read')]
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, content, expected):
    path = tmp_path / 'sweep.bin'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf'sweep\.bin.*{expected}'):
        read_points(path, 5)


def test_a_file_of_gigabytes_ends_no_run_of_other_sweeps(tmp_path, graphs):
    draw = np.random.default_rng(0)
    (draw.normal(size=(600, 5)) * [20, 20, 2, 40, 0]).astype('<f4').tofile(tmp_path / 'c.bin')
    with (tmp_path / 'b.bin').open('wb') as stream:
        stream.truncate(20 << 30)
    outputs = ['--out', str(tmp_path / 'out'), '--json', str(tmp_path / 'found.json')]
    assert run_app.main([str(graphs), str(tmp_path), *outputs]) == 1
    second, last = json.loads((tmp_path / 'found.json').read_text())['sweeps']
    assert 'detections' in last
    assert 'b.bin: has 21474836480 bytes, expected a sweep of at most 268435456' in second['error']


@pytest.mark.parametrize(('written', 'read'), [(4, 5), (5, 4), (3, 5), (6, 5)])
def test_a_sweep_of_another_width_is_refused_though_its_size_fits(tmp_path, written, read):
    sweep = np.random.default_rng(0).normal(size=(600, written)) * [20, 20, 2, 40, 9, 1][:written]
    path = tmp_path / 'sweep.bin'
    path.write_bytes(sweep.astype('<f4').tobytes())
    with pytest.raises(DataError, match=rf'sweep\.bin.*{written}.*{read}'):
        read_points(path, read)
    assert read_points(path, written).shape == (600, written)


@pytest.mark.parametrize(
    ('row', 'column', 'value', 'expected'),
    [
        (3, 0, 3e38, 'x, in metres, of point 3 is 3e+38'),
        (7, 2, float('nan'), 'z, in metres, of point 7 is nan'),
        (9, 3, 1e30, 'column 3 of point 9 is 1e+30'),
        (0, 1, -float('inf'), 'y, in metres, of point 0 is -inf'),
    ],
)
@pytest.mark.filterwarnings('error')
def test_a_value_that_no_sensor_measures_is_refused_by_row_and_column(tmp_path, row, column, value, expected):
    points = np.random.default_rng(0).normal(size=(600, 5)).astype('<f4') * np.float32([20, 20, 2, 40, 9])
    points[row, column] = value
    path = tmp_path / 'sweep.bin'
    points.tofile(path)
    with pytest.raises(DataError, match=re.escape(f'{path}: {expected}, expected a number of at most')):
        read_points(path, 5)


@pytest.mark.filterwarnings('error')
def test_a_sweep_that_was_saved_as_float64_is_told_so(tmp_path):
    path = tmp_path / 'sweep.bin'
    (np.random.default_rng(0).normal(size=(600, 5)) * [20, 20, 2, 40, 9]).astype('<f8').tofile(path)
    with pytest.raises(DataError, match=r'sweep\.bin.*float64.*float32'):
        read_points(path, 5)


def test_a_network_that_gives_nan_is_an_error(graphs, tmp_path):
    shutil.copytree(graphs, tmp_path / 'graphs')
    path = tmp_path / 'graphs' / 'head.onnx'
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda value: np.prod(value.dims))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    with CenterPointOnnx(tmp_path / 'graphs') as broken, pytest.raises(InferenceError, match='NaN'):
        broken.detect(toy_centerpoint.sweep(1))


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda folder: (folder / 'head.onnx').unlink(), r'head\.onnx'),
        (lambda folder: (folder / 'backbone.onnx').write_bytes(b'no'), r'backbone\.onnx'),
        (lambda folder: shutil.copy(folder / 'head.onnx', folder / 'backbone.onnx'), r'backbone\.onnx'),
        (lambda folder: shutil.rmtree(folder), 'no such folder'),
    ],
    ids=['missing', 'corrupt', 'twice the same', 'no folder'],
)
def test_files_that_are_no_export_are_refused(graphs, tmp_path, spoil, expected):
    folder = tmp_path / 'graphs'
    shutil.copytree(graphs, folder)
    spoil(folder)
    with pytest.raises(ModelFileError, match=expected):
        CenterPointOnnx(folder)


def test_a_file_that_is_given_twice_is_refused(graphs, tmp_path):
    files = [graphs / 'backbone.onnx', graphs / 'head.onnx', tmp_path / 'head.onnx']
    with pytest.raises(ModelFileError, match=r'both are head\.onnx'):
        CenterPointOnnx(files)


def test_a_list_of_files_lacks_one(graphs):
    with pytest.raises(ModelFileError, match=r'head\.onnx'):
        CenterPointOnnx([graphs / 'backbone.onnx'])


def test_exchanged_files_are_refused(graphs, tmp_path):
    shutil.copy(graphs / 'backbone.onnx', tmp_path / 'backbone.onnx')
    shutil.copy(graphs / 'backbone.onnx', tmp_path / 'head.onnx')
    with pytest.raises(ModelFileError, match="'backbone'"):
        CenterPointOnnx(tmp_path)


def test_files_of_two_exports_are_refused(graphs, tmp_path):
    shutil.copytree(graphs, tmp_path / 'graphs')
    path = tmp_path / 'graphs' / 'head.onnx'
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == 'mm2onnx.checkpoint_sha256':
            entry.value = f'"{"0" * 64}"'
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match='checkpoint_sha256'):
        CenterPointOnnx(tmp_path / 'graphs')


def test_it_runs_where_there_is_no_torch(graphs):
    program = (
        'import sys; sys.modules.update(torch=None, mmcv=None, spconv=None, onnx=None)\n'
        'import numpy as np\n'
        'from mmdeploy_ext.families.centerpoint.runtime import CenterPointOnnx\n'
        'points = np.random.default_rng(0).uniform(-6, 6, (200, 5)).astype(np.float32)\n'
        f'print(len(CenterPointOnnx({str(graphs)!r}).detect(points)))'
    )
    run = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().isdigit()
