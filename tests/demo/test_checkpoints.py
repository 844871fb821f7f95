"""The published checkpoints: plain data, small, of the config they name, and as good as their page says."""

import re
from pathlib import Path

import pytest
import torch

from mmdeploy_ext import compat
from mmdeploy_ext.synthetic.coco import ensure_toy_coco
from mmdeploy_ext.synthetic.scene import CLASSES

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINTS = REPOSITORY / 'demo' / 'checkpoints'


@pytest.fixture(scope='module')
def atss():
    return torch.load(CHECKPOINTS / 'atss_toy.pth', map_location='cpu', weights_only=True)


@pytest.fixture(scope='module')
def config():
    compat.apply()
    from mmdeploy_ext.core.config import load_config

    return load_config(str(REPOSITORY / 'configs/demo/atss_toy.py'))


def test_the_checkpoint_is_small_plain_and_complete(atss):
    assert (CHECKPOINTS / 'atss_toy.pth').stat().st_size <= 5e6
    assert set(atss) == {'meta', 'state_dict'}
    assert tuple(atss['meta']['CLASSES']) == CLASSES
    assert atss['meta']['mmdet_version'] == '2.28.2'
    assert atss['meta']['exp_name'] == 'atss_toy.py'


def test_the_config_is_plain_data_and_the_one_that_was_trained(atss, config):
    from mmcv import Config

    assert 'mmdet_config' not in config
    trained = Config.fromstring(atss['meta']['config'], '.py')
    for key in (
        'model',
        'optimizer',
        'optimizer_config',
        'lr_config',
        'runner',
        'train_pipeline',
        'test_pipeline',
    ):
        assert trained[key] == config[key], key


@pytest.mark.matrix
def test_the_checkpoint_has_the_ap_that_its_page_states(config, tmp_path):
    from mmcv.parallel import MMDataParallel
    from mmdet.apis import single_gpu_test
    from mmdet.datasets import build_dataloader, build_dataset
    from mmdet.models import build_detector

    from mmdeploy_ext.weights.checkpoint import load_checkpoint, load_strict

    ensure_toy_coco(tmp_path / 'set', train_images=1, quiet=True)  # val2017 is that of the full set
    data = config.data.test.copy()
    data.update(
        ann_file=str(tmp_path / 'set/annotations/instances_val2017.json'),
        img_prefix=str(tmp_path / 'set/val2017'),
        test_mode=True,
    )
    dataset = build_dataset(data)
    model = build_detector(config.model, test_cfg=config.get('test_cfg'))
    load_strict(model, load_checkpoint(CHECKPOINTS / 'atss_toy.pth'))
    loader = build_dataloader(dataset, 1, 0, dist=False, shuffle=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads spinning on a busy machine took 36 s, one takes 3 s
    try:
        results = single_gpu_test(MMDataParallel(model, device_ids=[-1]), loader)
    finally:
        torch.set_num_threads(threads)
    average_precision = dataset.evaluate(results, metric='bbox')['bbox_mAP']
    page = (CHECKPOINTS / 'README.md').read_text()
    stated = float(re.search(r'`atss_toy\.pth` \|.*?\| \*\*(0\.\d+)\*\* \|', page).group(1))
    assert average_precision == pytest.approx(stated, abs=2e-3)
    assert average_precision >= 0.45
