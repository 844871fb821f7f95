"""Keys and values of `backend_config` that nothing takes are refused by name."""

import pytest

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.evaluate.backend_config import graph_options, read_settings
from toy_atss import CONFIG


def settings_of(settings, unit='samples'):
    cfg = load_config(str(CONFIG))
    cfg.backend_config = settings
    return read_settings(cfg, find_family(cfg), unit)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ('onnx', "backend_config='onnx'"),
        (dict(type='Onnx'), "type='Onnx'"),
        (dict(type=['OnnxRuntimeBackend']), 'type='),
        (dict(type='TorchBackend', thread=1), 'thread'),
        (dict(type='TorchBackend', dump=3), 'dump=3'),
        (dict(type='TorchBackend', dump=dict(sample=1)), 'sample'),
        (dict(type='TorchBackend', dump=dict(samples=-1)), 'samples=-1'),
        (dict(type='TorchBackend', dump=dict(samples=[1])), r'samples=\[1\]'),
        (dict(type='TorchBackend', dump=dict(tensors=[1])), r'tensors=\[1\]'),
        (dict(type='TorchBackend', dump=dict(tensors=[])), r'tensors=\[\]'),
        (dict(type='TorchBackend', dump=dict(dir=1)), 'dir=1'),
    ],
)
def test_settings_that_nothing_takes_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        settings_of(settings)


def test_the_dump_of_frames_takes_indices_and_one_name():
    dump = dict(frames=[0, 3], tensors='memory', dir='out')
    assert settings_of(dict(type='TorchBackend', dump=dump), 'frames')['dump'] == {
        **dump,
        'tensors': ['memory'],
    }
    assert settings_of({})['dump'] is None


@pytest.mark.parametrize('settings', [dict(memory='keeps'), dict(opset_version=3), dict(shape=[1, 2, 3])])
def test_options_of_the_graph_are_checked(settings):
    cfg = load_config(str(CONFIG))
    with pytest.raises((ConfigError, UsageError), match=next(iter(settings)).partition('_')[0]):
        graph_options(cfg, settings, find_family(cfg))
