"""A repository's own builder builds its detector: it has a registry of its own, and takes keys first."""

import importlib
import sys

import pytest
from mmcv import Config

from mmdeploy_ext.upstream.models.building import build_without_weights

BUILDER = """
from mmcv.utils import Registry
MODELS = Registry('own')
def build_detector(cfg, logger=None):
    frozen = cfg.pop('frozen_parameters')
    model = MODELS.build(cfg)
    model.frozen = frozen
    return model
"""
DETECTOR = """
from torch import nn
from ..builder import MODELS
@MODELS.register_module()
class OwnDetector(nn.Sequential):
    pass
"""


@pytest.fixture
def own_detector(tmp_path, monkeypatch):
    package = tmp_path / 'own_builder_package'
    (package / 'detectors').mkdir(parents=True)
    (package / '__init__.py').write_text('')
    (package / 'builder.py').write_text(BUILDER)
    (package / 'detectors' / '__init__.py').write_text(DETECTOR)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module('own_builder_package.detectors').OwnDetector
    for name in [name for name in sys.modules if name.startswith('own_builder_package')]:
        del sys.modules[name]


def test_the_builder_of_the_repository_builds_its_detector(own_detector):
    cfg = Config(dict(model=dict(type='OwnDetector', frozen_parameters=['backbone'])))
    model = build_without_weights(cfg, build=None)
    assert type(model) is own_detector and model.frozen == ['backbone'] and not model.training
    assert cfg.model.frozen_parameters == ['backbone']


def test_a_builder_of_any_keywords_gets_the_test_cfg(own_detector, monkeypatch):
    given = {}

    def build_model(cfg, **others):
        given.update(others)
        return own_detector()

    monkeypatch.setattr(sys.modules['own_builder_package.builder'], 'build_model', build_model, raising=False)
    build_without_weights(
        Config(dict(model=dict(type='OwnDetector'), test_cfg=dict(score_thr=0.3))), build=None
    )
    assert given == dict(test_cfg=dict(score_thr=0.3))
