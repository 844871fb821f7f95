"""A converted checkpoint of SOLO tells its grids; a config with others is refused."""

from types import SimpleNamespace

import pytest
import torch

from mmdeploy_ext.base.errors import CheckpointError
from mmdeploy_ext.families.solo.family import check_grids
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

GRIDS = SimpleNamespace(num_grids=[40, 36, 24, 16, 12])


def of_config(text):
    return Checkpoint('c.pth', {'mask_head.conv_kernel.bias': torch.zeros(3)}, dict(config=text))


@pytest.mark.parametrize('text', [None, 'no grids', 'num_grids=[40, 36, 24, 16, 12]'])
def test_a_checkpoint_that_does_not_tell_its_grids_or_has_the_same_loads(text):
    check_grids(GRIDS, of_config(text))


def test_a_checkpoint_that_tells_other_grids_is_refused():
    with pytest.raises(CheckpointError, match=r'c\.pth.*\[24.*20\]'):
        check_grids(GRIDS, of_config('mask_head=dict(num_grids=[24, 20])'))


def test_layers_tell_the_grids_of_solo():
    weights = {
        f'mask_head.conv_mask_list.{level}.weight': torch.zeros(grid**2, 4, 1, 1)
        for level, grid in enumerate([20, 16])
    }
    with pytest.raises(CheckpointError, match=r'\[20.*16\]'):
        check_grids(GRIDS, Checkpoint('c.pth', weights, {}))
