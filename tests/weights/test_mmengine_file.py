"""Checkpoints that mmengine wrote: the real file beside this one, and faults planted in it.

`mmengine_0_10_7.pth` was saved by the Runner of mmengine 0.10.7 after two iterations of a model of seven
tensors with EMAHook, two schedulers and SGD. `meta.hook` was added: what the hook held as the average, and
what was trained.
"""

import pickle
from pathlib import Path

import pytest
import torch

from mmdeploy_ext.core.errors import CheckpointError, ConfigError, EngineError
from mmdeploy_ext.families.model import check_device, class_names
from mmdeploy_ext.weights.checkpoint import (
    IgnoredObject,
    ignored_getattr,
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


def test_a_file_of_class_names_is_read_only_where_the_checkpoint_has_no_names(tmp_path):
    path = tmp_path / 'names.txt'
    cfg = {'data': {'test': {'classes': str(path)}}}
    assert class_names(cfg, {'CLASSES': ('a', 'b')}, 2) == ('a', 'b')
    with pytest.raises(ConfigError, match=r'data\.test\.classes=.*names\.txt.*cannot be read'):
        class_names(cfg, {}, 2)
    path.write_text('circle\nsquare\n')
    assert class_names(cfg, {}, 2) == ('circle', 'square')
    assert class_names(cfg, {}, 3) == ('class 0', 'class 1', 'class 2')


@pytest.mark.parametrize(('count', 'is_there'), [(1, False), (8, True)])
def test_a_gpu_that_is_not_there_is_refused_by_its_number(count, is_there, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    assert check_device('cuda').index is None
    if is_there:
        assert check_device('cuda:7').index == 7
    else:
        with pytest.raises(EngineError, match=r'--device cuda:7: torch sees 1 GPU'):
            check_device('cuda:7')


@pytest.mark.parametrize(
    'meta', [{}, *({'dataset_meta': named} for named in ({}, None, {'x': 1}, {'classes': torch.ones(2)}))]
)
def test_meta_without_class_names_stays_as_it_is(meta):
    assert with_class_names(meta) == meta
    assert with_class_names({**meta, 'CLASSES': ('a',)})['CLASSES'] == ('a',)


def test_getattr_of_a_file_gets_nothing_and_calls_nothing(tmp_path):
    path = tmp_path / 'w.pth'
    weights = {'a': torch.ones(1)}
    torch.save({'state_dict': weights, 'meta': {'asked': named(getattr, 'text', 'upper')}}, path)
    assert load_checkpoint(path).meta['asked'] is None
    assert ignored_getattr(torch, 'load') is None


def test_what_getattr_gave_cannot_be_called(tmp_path):
    path = tmp_path / 'w.pth'
    asked = b'\x80\x02cbuiltins\ngetattr\ncbuiltins\ngetattr\nX\x08\x00\x00\x00__call__\x86R'
    path.write_bytes(asked + b')R.')  # the attribute, called without arguments
    with pytest.raises(CheckpointError, match=r'w\.pth: '):
        load_checkpoint(path)
    path.write_bytes(asked + b'.')
    assert pickle.loads(asked + b'.') is not None
    with pytest.raises(CheckpointError, match=r'w\.pth: '):  # None is no checkpoint
        load_checkpoint(path)


def test_what_mmengine_does_not_write_is_refused_by_name(tmp_path):
    content = read_content(FILE)
    content['message_hub']['log_scalars'].clear()
    content['message_hub']['runtime_info']['task'] = Stranger()
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'w\.pth.*\w+\.Stranger'):
        load_checkpoint(tmp_path / 'w.pth')
