"""The published CenterPoint: plain data, small, of the config that it names."""

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINTS = REPOSITORY / 'demo' / 'checkpoints'


@pytest.fixture(scope='module')
def published():
    return torch.load(CHECKPOINTS / 'centerpoint_toy.pth', map_location='cpu', weights_only=True)


def test_it_is_small_plain_and_complete(published):
    assert (CHECKPOINTS / 'centerpoint_toy.pth').stat().st_size <= 8e6
    assert set(published) == {'meta', 'state_dict'}
    assert len(published['meta']['CLASSES']) == 10
    assert published['meta']['exp_name'] == 'centerpoint_toy.py'


def test_it_is_of_the_config_in_the_repository(published):
    from mmcv import Config

    from mmdeploy_ext.core.config import load_config

    config = load_config(str(REPOSITORY / 'projects/configs/BEVFusion/centerpoint_toy.py'))
    trained = Config.fromstring(published['meta']['config'], '.py')
    for key in ('model', 'optimizer', 'optimizer_config', 'lr_config', 'runner'):
        assert trained[key] == config[key], key
    assert trained.data.train.pipeline == config.data.train.pipeline
    assert trained.data.test.pipeline == config.data.test.pipeline


def test_its_log_is_whole():
    lines = (CHECKPOINTS / 'centerpoint_toy.log').read_text().splitlines()
    assert lines[0].startswith('# python tools/train.py')
    assert lines[-1].startswith('Epoch [4][192/192]')
    assert '/home' not in ''.join(lines)
