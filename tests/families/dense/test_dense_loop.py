"""The trained toys of heads, regions and queries: as good as their page says by both engines, and proven."""

import re

import pytest
import torch

from mmdeploy_ext.cli import test_app
from mmdeploy_ext.core.files import read_json
from toy_atss import REPO

TOYS = 'yolox_toy', 'retinanet_toy', 'mask_rcnn_toy', 'deformable_detr_toy'
SMALL, MASKED = ('yolox_toy', 'retinanet_toy'), ('mask_rcnn_toy',)
"""Those of at most 5 MB; those whose page states the AP of masks, where the other ones have that of boxes."""
LEAST = dict(deformable_detr_toy=0.3)
"""AP of those that are below 0.35."""
CHECKPOINTS = REPO / 'demo/checkpoints'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    from mmdeploy_ext.synthetic.coco import ensure_toy_coco

    root = tmp_path_factory.mktemp('data') / 'toy'
    ensure_toy_coco(root, train_images=1, quiet=True)
    return [
        f'data.test.ann_file={root}/annotations/instances_val2017.json',
        f'data.test.img_prefix={root}/val2017/',
        'data.workers_per_gpu=0',
    ]


@pytest.mark.matrix  # in the suite: ATSS, by both engines (test_test_loop.py)
@pytest.mark.parametrize('toy', TOYS)
def test_both_engines_have_the_ap_that_the_page_states(toy, data, tmp_path, capsys):
    path = CHECKPOINTS / f'{toy}.pth'
    assert path.stat().st_size <= (5e6 if toy in SMALL else 7e6)
    assert set(torch.load(path, map_location='cpu', weights_only=True)) == {'meta', 'state_dict'}
    metric = 'segm' if toy in MASKED else 'bbox'
    options = [
        '--eval',
        'bbox',
        *[metric] * (toy in MASKED),
        '--work-dir',
        str(tmp_path),
        '--cfg-options',
        *data,
    ]
    found = {}
    for engine in ('pth', 'onnx'):
        config = str(REPO / f'configs/demo/{toy}_{engine}.py')
        assert test_app.main([config, str(path), *options]) == 0
        found[engine] = read_json(tmp_path / f'metrics_{engine}.json')['metrics']
    for key, value in found['pth'].items():
        assert abs(value - found['onnx'][key]) <= 5e-4
    assert found['pth']['bbox_mAP'] >= LEAST.get(toy, 0.35)
    stated = re.search(
        rf'`{toy}\.pth`.*?\|.*?\| \*\*(0\.\d+)\*\* \|', (CHECKPOINTS / 'README.md').read_text()
    )
    found = found['pth'][f'{metric}_mAP']
    assert found == pytest.approx(float(stated[1]), abs=2e-3) and found >= LEAST.get(toy, 0.35)
    assert 'equal' in capsys.readouterr().out
