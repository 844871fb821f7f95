"""The published SOLO checkpoints: plain data, small, of the config they name, as good as their page says."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmdet.apis import single_gpu_test
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.models import build_detector

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.synthetic.coco import ensure_toy_coco
from mmdeploy_ext.synthetic.scene import CLASSES
from mmdeploy_ext.weights.checkpoint import load_checkpoint, load_strict

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINTS = REPOSITORY / 'demo' / 'checkpoints'
BAR = 0.35
TRAINED = ('model', 'optimizer', 'optimizer_config', 'lr_config', 'runner', 'train_pipeline', 'test_pipeline')

RESUMED = ('decoupled_solo_toy',)
"""Its file keeps the config of the first run; demo/checkpoints/README.md says what changed later: the number
of epochs, and which sizes each level learns from."""


@pytest.fixture(
    scope='module', params=['solov2_toy', pytest.param('decoupled_solo_toy', marks=pytest.mark.matrix)]
)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def config(name):
    return load_config(str(REPOSITORY / f'configs/demo/{name}.py'))


def test_the_checkpoint_is_small_plain_and_of_its_config(name, config):
    path = CHECKPOINTS / f'{name}.pth'
    assert path.stat().st_size <= 6e6
    content = torch.load(path, map_location='cpu', weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert tuple(content['meta']['CLASSES']) == CLASSES
    assert content['meta']['exp_name'] == f'{name}.py'
    trained = Config.fromstring(content['meta']['config'], '.py')
    config = copy.deepcopy(config)
    if name in RESUMED:
        for one in (trained, config):
            one.runner.pop('max_epochs')
            one.model.mask_head.pop('scale_ranges')
    assert {key: trained[key] for key in TRAINED} == {key: config[key] for key in TRAINED}


@pytest.mark.matrix  # 100 pictures; tests/commands/test_test_loop_masks.py evaluates a few
def test_the_checkpoint_has_the_mask_ap_that_its_page_states(name, config, tmp_path):
    ensure_toy_coco(tmp_path / 'set', train_images=1, quiet=True)  # val2017 is that of the full set
    data = config.data.test.copy()
    data.update(
        ann_file=str(tmp_path / 'set/annotations/instances_val2017.json'),
        img_prefix=str(tmp_path / 'set/val2017'),
        test_mode=True,
    )
    dataset = build_dataset(data)
    model = build_detector(config.model)
    load_strict(model, load_checkpoint(CHECKPOINTS / f'{name}.pth'))
    loader = build_dataloader(dataset, 1, 0, dist=False, shuffle=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = single_gpu_test(MMDataParallel(model, device_ids=[-1]), loader)
    finally:
        torch.set_num_threads(threads)
    average_precision = dataset.evaluate(results, metric='segm')['segm_mAP']
    page = (CHECKPOINTS / 'README.md').read_text()
    stated = float(re.search(rf'`{name}\.pth` \|.*?\| \*\*(0\.\d+)\*\* \|', page).group(1))
    assert average_precision == pytest.approx(stated, abs=2e-3)
    assert average_precision >= BAR
