"""CenterPoint on ONNX Runtime: points to boxes without PyTorch, and what it refuses."""

import shutil

import numpy as np
import pytest

import toy_centerpoint
from mmdeploy_ext.base.errors import DataError, ModelFileError
from mmdeploy_ext.families.centerpoint.runtime import CenterPointOnnx
from mmdeploy_ext.runtime.frames import Sweep


@pytest.fixture(scope='module')
def graphs():
    return toy_centerpoint.exported()[1]


@pytest.fixture(scope='module')
def runtime(graphs):
    with CenterPointOnnx(graphs) as opened:
        yield opened


def test_boxes_equal_pytorchs(runtime):
    detector = toy_centerpoint.exported()[0]
    points = toy_centerpoint.sweep(7, 600)
    expected = detector.family.reference(detector.model).step(Sweep(points)).detections
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
    detector = toy_centerpoint.exported()[0]
    with pytest.raises(DataError, match=expected):
        runtime.detect(points)
    with pytest.raises(DataError, match=expected):
        detector.family.reference(detector.model).step(Sweep(points))


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda folder: (folder / 'head.onnx').unlink(), r'head\.onnx'),
        (lambda folder: shutil.copy(folder / 'backbone.onnx', folder / 'head.onnx'), "'backbone'"),
    ],
    ids=['missing', 'twice the same'],
)
def test_files_that_are_no_export_are_refused(graphs, tmp_path, spoil, expected):
    folder = tmp_path / 'graphs'
    shutil.copytree(graphs, folder)
    spoil(folder)
    with pytest.raises(ModelFileError, match=expected):
        CenterPointOnnx(folder)
