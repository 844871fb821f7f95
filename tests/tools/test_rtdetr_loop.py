"""The test loop of RT-DETR: PyTorch dumps and evaluates; the file agrees with the dump, and in AP."""

import pickle

import numpy as np
import pytest

import toy_rtdetr
from mmdeploy_ext.apps import test_app
from mmdeploy_ext.dump import list_samples, load_dump
from mmdeploy_ext.files import read_json

SAMPLES = 3


def register():
    import projects.mmdet_plugin  # noqa: F401


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from projects.toydata.coco import ensure_toy_coco

    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=1, val_images=SAMPLES)
    annotations = f'data.test.ann_file={root}/annotations/instances_val2017.json'
    return [annotations, f'data.test.img_prefix={root}/val2017/', 'data.workers_per_gpu=0',
            'data.persistent_workers=False']


@pytest.fixture(scope='module', params=['full', 'raw'])
def run(request, data, tmp_path_factory):
    """Return form, folder and texts of a run by PyTorch and one by ONNX Runtime."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = toy_rtdetr.write_checkpoint(folder / 'seeded.pth')
    for name in ('pth', 'onnx'):
        line = [toy_rtdetr.CONFIG.replace('.py', f'_{name}.py'), checkpoint, '--eval', 'bbox']
        line += ['--work-dir', str(folder), '--out', str(folder / f'{name}.pkl'), '--cfg-options', *data]
        assert test_app.main(register, [*line, f'backend_config.postprocess={request.param}']) == 0
    return request.param, folder


def test_metrics_and_detections_are_the_same_by_both_engines(run):
    _, folder = run
    metrics = [read_json(folder / f'metrics_{name}.json')['metrics'] for name in ('pth', 'onnx')]
    assert metrics[0].keys() == metrics[1].keys() >= {'bbox_mAP'}
    assert all(abs(metrics[0][key] - metrics[1][key]) <= 0.0005 for key in metrics[0])
    results = [pickle.loads((folder / f'{name}.pkl').read_bytes()) for name in ('pth', 'onnx')]
    assert len(results[0]) == len(results[1]) == SAMPLES
    for image, other in zip(*results, strict=True):
        assert sum(map(len, image)) == 60
        assert [len(rows) for rows in image] == [len(rows) for rows in other]
        for rows, others in zip(image, other, strict=True):
            np.testing.assert_allclose(rows[:, 4], others[:, 4], atol=1e-4)


def test_dumps_hold_what_the_contract_names_and_what_ties_need(run):
    form, folder = run
    samples = list_samples(folder / 'dump')
    assert len(samples) == SAMPLES
    tensors, _ = load_dump(samples[0])
    outputs = {'full': {'labels', 'boxes', 'scores'}, 'raw': {'logits', 'boxes', 'tokens'}}[form]
    assert {'images', 'orig_target_sizes', *outputs} <= tensors.keys()
