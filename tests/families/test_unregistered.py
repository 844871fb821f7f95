"""A type that nobody has registered: the refusal says where its class is, and what imports it."""

import sys

import pytest
from mmcv import Config
from mmdet.models.backbones import ResNet
from mmdet.models.builder import BACKBONES

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.unregistered import unregistered
from mmdeploy_ext.families.base import find_family, load_families
from mmdeploy_ext.upstream.models.building import build_without_weights

BACKBONE = """
from mmdet.models import builder
from mmdet.models.builder import BACKBONES
raise RuntimeError('this file is read, not imported')

@BACKBONES.register_module()
class UserNet(object):
    pass
"""
MODEL = """
model = dict(type={detector!r}, backbone=dict(type='UserNet'),
             rpn_head=dict(type='RPNHead', nms=dict(type='nms')),
             roi_head=dict(type='StandardRoIHead', bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign'))))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a folder with a plugin and a config, where the command runs."""
    folder = tmp_path / 'own_code' / 'nets'
    folder.mkdir(parents=True)
    (tmp_path / 'configs').mkdir()
    (folder / '__init__.py').write_text('from .user_net import UserNet\n')
    (folder / 'user_net.py').write_text(BACKBONE)
    (folder / 'copy_of_it.py').write_text('class UserNet:\n    """Not registered."""\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(repository, detector='MaskRCNN'):
    path = repository / 'configs' / 'own.py'
    path.write_text(MODEL.format(detector=detector))
    return Config.fromfile(str(path))


def test_the_refusal_names_the_file_of_the_class_and_what_imports_it(repository):
    load_families()
    said = unregistered(read(repository))
    assert "model.backbone.type='UserNet'" in said and said.endswith(' custom_imports.imports=own_code.nets')
    assert 'own_code/nets/user_net.py' in said
    assert 'RoIAlign' not in said and 'nms' not in said and 'own_code' not in sys.modules


def test_a_detector_that_nobody_registered_is_not_said_to_be_near_a_family(repository):
    with pytest.raises(ConfigError, match=r"model\.type='UserDetector'") as error:
        find_family(read(repository, 'UserDetector'))
    assert 'nearest' not in str(error.value)


def test_the_line_of_a_user_that_fails_while_the_model_is_built_is_named(repository, monkeypatch):
    path = repository / 'own_net.py'
    path.write_text('class UserNet:\n    def __init__(self, **settings):\n        assert not settings\n')
    monkeypatch.syspath_prepend(repository)
    from own_net import UserNet

    monkeypatch.setitem(BACKBONES.module_dict, 'UserNet', UserNet)
    cfg = read(repository)
    cfg.model.backbone.depth = 1
    with pytest.raises(ConfigError, match=r'AssertionError: .*UserNet: +\(raised in .*own_net\.py:3\)'):
        find_family(cfg).build(cfg)


def test_a_backbone_that_nobody_registered_is_named_when_the_model_is_built(repository):
    cfg = read(repository)
    family = find_family(cfg)
    with pytest.raises(ConfigError, match=r'UserNet.*own_code/nets/user_net\.py'):
        family.build(cfg)


@pytest.mark.parametrize('given', [dict(), dict(pretrained='nowhere/net.pth')])
def test_a_backbone_that_reads_pretrained_is_built_without_weights(monkeypatch, given):
    class Net(ResNet):
        def __init__(self, **settings):
            assert settings.pop('pretrained') is None
            super().__init__(**settings)

    monkeypatch.setitem(BACKBONES.module_dict, 'Net', Net)
    cfg = Config(dict(model=dict(type='RPN', backbone=dict(type='Net', depth=18, **given), rpn_head=None)))
    build = lambda model, test_cfg: BACKBONES.build(model.backbone)  # noqa: E731
    assert type(build_without_weights(cfg, build, 'backbone')) is Net


def test_a_type_whose_module_fails_when_it_is_imported_is_refused_with_that_error(repository, monkeypatch):
    plugin = repository / 'failing_code'
    plugin.mkdir()
    (plugin / '__init__.py').write_text('from . import user_net\n')
    (plugin / 'user_net.py').write_text(BACKBONE.replace('UserNet', 'FailingNet'))
    path = repository / 'configs' / 'own.py'
    text = MODEL.format(detector='MaskRCNN').replace('UserNet', 'FailingNet')
    path.write_text(f"{text}custom_imports = dict(imports=['failing_code'])\n")
    monkeypatch.setattr(sys, 'path', [*sys.path])
    cfg = load_config(str(path))
    with pytest.raises(ConfigError, match=r'failing_code\.user_net fails.*RuntimeError.*user_net\.py:4\)'):
        find_family(cfg).build(cfg)
