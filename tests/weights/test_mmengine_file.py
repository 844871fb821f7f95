"""Checkpoints that mmengine wrote: the real file beside this one, and faults planted in it.

`mmengine_0_10_7.pth` was saved by the Runner of mmengine 0.10.7 after two iterations of a model of seven
tensors with EMAHook, two schedulers and SGD. `meta.hook` was added: what the hook held as the average, and
what was trained.
"""

from pathlib import Path

import pytest
import torch

from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.families.model import class_names
from mmdeploy_ext.weights.checkpoint import (
    IgnoredObject,
    load_checkpoint,
    read_content,
    with_class_names,
)

FILE = Path(__file__).with_name('mmengine_0_10_7.pth')


class Stranger:
    """A class that no checkpoint may name."""


def test_a_file_of_mmengines_runner_loads_as_data():
    loaded = load_checkpoint(FILE)
    assert list(loaded.state_dict)[:2] == ['conv.weight', 'conv.bias'] and len(loaded.state_dict) == 7
    assert loaded.meta['mmengine_version'] == '0.10.7'
    curves = read_content(FILE)['message_hub']['log_scalars']
    assert {type(curve) for curve in curves.values()} == {IgnoredObject} and len(curves) == 5
    assert all(not vars(curve) for curve in curves.values())


def test_the_averaged_weights_are_taken_where_the_hook_averaged():
    loaded = load_checkpoint(FILE)
    hook = loaded.meta['hook']
    assert torch.equal(loaded.state_dict['conv.bias'], torch.tensor(hook['average']))
    assert not torch.equal(loaded.state_dict['conv.bias'], torch.tensor(hook['trained']))
    swapped = read_content(FILE)['ema_state_dict']['module.conv.bias']
    assert torch.equal(swapped, torch.tensor(hook['trained']))


@pytest.mark.parametrize('key', ['classes', 'CLASSES'])
def test_class_names_are_those_of_dataset_meta(key):
    names = ('circle', 'square')
    assert load_checkpoint(FILE).meta['CLASSES'] == names
    meta = with_class_names({'dataset_meta': {key: names}, 'CLASSES': ('other', 'names')})
    assert meta['CLASSES'] == names
    assert class_names({}, meta, 2) == names


def test_what_mmengine_does_not_write_is_refused_by_name(tmp_path):
    content = read_content(FILE)
    content['message_hub']['log_scalars'].clear()
    content['message_hub']['runtime_info']['task'] = Stranger()
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'w\.pth.*\w+\.Stranger'):
        load_checkpoint(tmp_path / 'w.pth')
