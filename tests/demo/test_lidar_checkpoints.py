"""The published detectors of LiDAR: plain data, small, each of the config that it names."""

from pathlib import Path

import pytest
import torch
from mmcv import Config

from mmdeploy_ext.core.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINTS = REPOSITORY / 'demo' / 'checkpoints'
TOYS = {
    'centerpoint_toy': ('BEVFusion', 10),
    'pointpillars_toy': ('PointPillars', 10),
    'centerpoint_pillar_toy': ('Autoware', 5),
}


@pytest.fixture(params=TOYS)
def toy(request):
    return request.param


@pytest.fixture
def published(toy):
    return torch.load(CHECKPOINTS / f'{toy}.pth', map_location='cpu', weights_only=True)


def test_it_is_small_plain_and_complete(toy, published):
    assert (CHECKPOINTS / f'{toy}.pth').stat().st_size <= 8e6
    assert set(published) == {'meta', 'state_dict'}
    assert len(published['meta']['CLASSES']) == TOYS[toy][1]
    assert published['meta']['exp_name'] == f'{toy}.py'


def test_it_is_of_the_config_in_the_repository(toy, published):
    config = load_config(str(REPOSITORY / 'projects/configs' / TOYS[toy][0] / f'{toy}.py'))
    trained = Config.fromstring(published['meta']['config'], '.py')
    assert trained.model == config.model
    assert trained.data.test.pipeline == config.data.test.pipeline


def test_its_log_is_whole(toy):
    lines = (CHECKPOINTS / f'{toy}.log').read_text().splitlines()
    assert lines[0].startswith('# python tools/train.py')
    assert lines[-1].startswith('Epoch [4][192/192]')
    assert '/home' not in ''.join(lines)
