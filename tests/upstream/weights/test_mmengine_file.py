"""Checkpoints that mmengine wrote: the real file beside this one, and faults planted in it.

`mmengine_0_10_7.pth` was saved by the Runner of mmengine 0.10.7 after two iterations of a model of seven
tensors with EMAHook, two schedulers and SGD. `meta.hook` was added: what the hook held as the average, and
what was trained.
"""

import argparse
from pathlib import Path

import pytest
import torch
from mmcv import Config

from mmdeploy_ext.families.detector import class_names
from mmdeploy_ext.upstream.weights.checkpoint import (
    IgnoredObject,
    PickledModelError,
    load_checkpoint,
    read_content,
    with_class_names,
)

FILE = Path(__file__).with_name('mmengine_0_10_7.pth')


def named(name, *fields):
    """Return an object that is pickled as a call of a global, whatever that is."""

    class Called:
        def __reduce__(self):
            return name, fields

    return Called()


def test_a_file_of_mmengines_runner_loads_as_data():
    loaded = load_checkpoint(FILE)
    assert list(loaded.state_dict)[:2] == ['conv.weight', 'conv.bias'] and len(loaded.state_dict) == 7
    assert loaded.meta['mmengine_version'] == '0.10.7'
    curves = read_content(FILE)['message_hub']['log_scalars']
    assert len(curves) == 5
    assert all(isinstance(curve, IgnoredObject) and not vars(curve) for curve in curves.values())


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


class Stranger(dict):
    """A class of a research repository, derived from dict."""


def test_objects_beside_the_weights_are_ignored_and_their_code_does_not_run(tmp_path):
    meta = dict(
        args=argparse.Namespace(lr=0.1),
        cfg=Config(dict(model=dict(type='ATSS'))),
        own=Stranger(a=1),
        path=tmp_path,
        called=named(eval, '1 + 1'),
    )
    torch.save(dict(meta=meta, state_dict=dict(a=torch.ones(1))), tmp_path / 'w.pth')
    loaded = load_checkpoint(tmp_path / 'w.pth')
    assert list(loaded.state_dict) == ['a']
    assert isinstance(loaded.meta['called'], IgnoredObject)


def test_a_pickled_model_is_refused_by_its_class(tmp_path):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / 'w.pth')
    with pytest.raises(PickledModelError, match=r'w\.pth.*Conv2d'):
        load_checkpoint(tmp_path / 'w.pth')
