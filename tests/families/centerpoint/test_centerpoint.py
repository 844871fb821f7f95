"""CenterPoint on ONNX Runtime: points to boxes without PyTorch, and what it refuses."""

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest

import toy_centerpoint
from mmdeploy_ext.core.errors import DataError, ModelFileError
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


@pytest.mark.parametrize(
    'points, expected',
    [
        (np.zeros((3, 4), np.float32), r'\(3, 4\)'),
        (np.zeros((0, 5), np.float32), 'empty'),
        (np.full((3, 5), np.nan, np.float32), 'finite'),
        (np.full((3, 5), 900, np.float32), 'range'),
    ],
    ids=['four values', 'empty', 'NaN', 'all outside'],
)
def test_points_that_cannot_be_are_refused_by_both_engines(runtime, points, expected):
    deployment = toy_centerpoint.exported()[0]
    with pytest.raises(DataError, match=expected):
        runtime.detect(points)
    with pytest.raises(DataError, match=expected):
        deployment.family.reference(deployment.model).step(Sweep(points))


@pytest.mark.parametrize('content, expected', [(b'', 'empty'), (b'0123', '20')])
def test_a_file_that_is_no_sweep_is_refused(tmp_path, content, expected):
    path = tmp_path / 'sweep.bin'
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf'sweep\.bin.*{expected}'):
        read_points(path, 5)


@pytest.mark.parametrize(('written', 'read'), [(4, 5), (5, 4)])
def test_a_sweep_of_another_width_is_refused_though_its_size_fits(tmp_path, written, read):
    sweep = np.random.default_rng(0).normal(size=(600, written)) * [20, 20, 2, 40, 9, 1][:written]
    path = tmp_path / 'sweep.bin'
    path.write_bytes(sweep.astype('<f4').tobytes())
    with pytest.raises(DataError, match=rf'sweep\.bin.*{written}.*{read}'):
        read_points(path, read)
    assert read_points(path, written).shape == (600, written)


@pytest.mark.filterwarnings('error')
def test_a_sweep_that_was_saved_as_float64_is_told_so(tmp_path):
    path = tmp_path / 'sweep.bin'
    (np.random.default_rng(0).normal(size=(600, 5)) * [20, 20, 2, 40, 9]).astype('<f8').tofile(path)
    with pytest.raises(DataError, match=r'sweep\.bin.*float64.*float32'):
        read_points(path, 5)


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda folder: (folder / 'head.onnx').unlink(), r'head\.onnx'),
        (lambda folder: shutil.copy(folder / 'backbone.onnx', folder / 'head.onnx'), "'backbone'"),
        (lambda folder: shutil.rmtree(folder), 'no such folder'),
    ],
    ids=['missing', 'twice the same', 'no folder'],
)
def test_files_that_are_no_export_are_refused(graphs, tmp_path, spoil, expected):
    folder = tmp_path / 'graphs'
    shutil.copytree(graphs, folder)
    spoil(folder)
    with pytest.raises(ModelFileError, match=expected):
        CenterPointOnnx(folder)


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
