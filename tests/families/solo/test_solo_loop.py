"""The test loop of instance segmentation: mask AP by PyTorch and by the exported file."""

import contextlib
import io
import pickle
from pathlib import Path

import pytest

from marking import in_suite
from mmdeploy_ext.cli import test_app
from mmdeploy_ext.core.files import read_json

REPO = Path(__file__).resolve().parents[3]
SAMPLES = 4
TOYS = dict(solov2_toy={'scores', 'cate_pred'}, mask_rcnn_toy={'dets', 'scale_factor'})
"""Toy -> tensors that its instances are made of."""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from mmdeploy_ext.synthetic.coco import ensure_toy_coco

    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=1, val_images=SAMPLES)
    return [
        f'data.test.ann_file={root}/annotations/instances_val2017.json',
        f'data.test.img_prefix={root}/val2017/',
        'data.workers_per_gpu=0',
    ]


@pytest.fixture(scope='module', params=in_suite(TOYS, 'mask_rcnn_toy'))
def runs(request, data, tmp_path_factory):
    """Return the folder and what the tool printed with either engine."""
    folder, texts = tmp_path_factory.mktemp('run'), {}
    for name in ('pth', 'onnx'):
        words = [
            str(REPO / f'configs/demo/{request.param}_{name}.py'),
            str(REPO / f'demo/checkpoints/{request.param}.pth'),
            '--eval=segm',
            '--work-dir',
            str(folder),
        ]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            words += ['--out', str(folder / f'{name}.pkl'), '--cfg-options', *data]
            assert test_app.main(words) == 0
        texts[name] = printed.getvalue()
    return folder, texts, TOYS[request.param]


def test_mask_ap_of_the_file_is_that_of_pytorch(runs):
    folder, texts, _ = runs
    reference, candidate = (read_json(folder / f'metrics_{name}.json')['metrics'] for name in ('pth', 'onnx'))
    assert reference.keys() == candidate.keys() and reference['segm_mAP'] > 0.25
    assert all(abs(reference[key] - candidate[key]) <= 0.0005 for key in reference)
    assert texts['onnx'].count('agrees') == 4, 'the dumped samples are compared first'


def test_results_of_both_engines_are_the_same_masks(runs):
    from pycocotools import mask as rle

    results = [pickle.loads((runs[0] / f'{name}.pkl').read_bytes()) for name in ('pth', 'onnx')]
    compared = 0
    for (boxes, masks), (other_boxes, other_masks) in zip(*results, strict=True):
        for scored, kind, other_scored, other in zip(boxes, masks, other_boxes, other_masks, strict=True):
            sure, other_sure = (rows[:, 4] >= 0.1 for rows in (scored, other_scored))
            assert sure.sum() == other_sure.sum()
            if sure.any():
                kept = [mask for mask, good in zip(kind, sure, strict=True) if good]
                others = [mask for mask, good in zip(other, other_sure, strict=True) if good]
                overlaps = rle.iou(kept, others, [False] * len(others))
                assert (overlaps.max(axis=1) >= 0.995).all()
                compared += len(kept)
    assert compared >= 4 * SAMPLES
