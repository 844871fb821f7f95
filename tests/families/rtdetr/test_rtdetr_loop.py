"""The test loop of RT-DETR: PyTorch dumps and evaluates; the file agrees with the dump, and in AP."""

import pickle

import numpy as np
import pytest

import toy_rtdetr
from mmdeploy_ext.synthetic.coco import ensure_toy_coco

pytestmark = pytest.mark.matrix  # in the suite: the loop by ATSS (test_test_loop.py)
SAMPLES = 3


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=1, val_images=SAMPLES)
    return root


@pytest.fixture(scope='module', params=['full', 'raw'])
def run(request, data, tmp_path_factory):
    """Return form, folder and metrics of a run by PyTorch and one by ONNX Runtime."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = toy_rtdetr.write_checkpoint(folder / 'seeded.pth')
    return request.param, folder, toy_rtdetr.evaluate_both(folder, checkpoint, data, request.param)


def test_metrics_and_detections_are_the_same_by_both_engines(run):
    _, folder, metrics = run
    assert metrics[0].keys() == metrics[1].keys() >= {'bbox_mAP'}
    assert all(abs(metrics[0][key] - metrics[1][key]) <= 0.0005 for key in metrics[0])
    results = [pickle.loads((folder / f'{name}.pkl').read_bytes()) for name in ('pth', 'onnx')]
    assert len(results[0]) == len(results[1]) == SAMPLES
    for image, other in zip(*results, strict=True):
        assert sum(map(len, image)) == 60
        assert [len(rows) for rows in image] == [len(rows) for rows in other]
        for rows, others in zip(image, other, strict=True):
            np.testing.assert_allclose(rows[:, 4], others[:, 4], atol=1e-4)
