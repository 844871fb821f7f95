"""Methods, steps and data sets of the user's that a graph does not show are named, and judged by results."""

import importlib
import sys
import types

import pytest
from torch import nn

from mmdeploy_ext import api
from mmdeploy_ext.proving.open_points import untraced_methods
from toy_atss import REPO

PLUGIN = """
from mmdet.datasets import PIPELINES, CocoDataset
from mmdet.datasets.builder import DATASETS
from mmdet.datasets.pipelines import Resize
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import ATSSHead

SCALE = 1.0


@HEADS.register_module()
class ScaledHead(ATSSHead):
    def simple_test_bboxes(self, *args, **kwargs):
        return [(boxes * SCALE, labels) for boxes, labels in super().simple_test_bboxes(*args, **kwargs)]


@PIPELINES.register_module()
class OwnResize(Resize):
    pass


@DATASETS.register_module()
class OwnData(CocoDataset):
    def prepare_test_img(self, index):
        return super().prepare_test_img(index)


@DATASETS.register_module()
class OwnNames(CocoDataset):
    CLASSES = ('disc',)
"""
HEAD = 'ScaledHead.simple_test_bboxes (untraced_plugin.py:13): compared by its results'


@pytest.fixture(scope='module')
def plugin(tmp_path_factory):
    """The plugin's module, whose folder is on the path."""
    folder = tmp_path_factory.mktemp('plugin')
    (folder / 'untraced_plugin.py').write_text(PLUGIN)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield importlib.import_module('untraced_plugin')
    sys.path.remove(str(folder))


@pytest.fixture(scope='module')
def exported(plugin, tmp_path_factory):
    """The demo's toy with a head of the user's, exported."""
    folder = tmp_path_factory.mktemp('export')
    (folder / 'config.py').write_text(
        f"_base_ = ['{REPO}/configs/demo/atss_toy.py']\n"
        "custom_imports = dict(imports=['untraced_plugin'])\n"
        "model = dict(bbox_head=dict(type='ScaledHead'))\n"
    )
    checkpoint = REPO / 'demo' / 'checkpoints' / 'atss_toy.pth'
    return api.export(folder / 'config.py', checkpoint, folder / 'm.onnx')


def test_a_method_of_the_user_is_named_and_strict_makes_it_a_failure(exported):
    verdict, _ = exported.prove(strict=True)
    assert verdict.untraced == [HEAD]
    assert verdict.title == 'NOT PROVEN' and verdict.failures == [f'untraced: {HEAD}']
    assert verdict.model_classes == ['ScaledHead (untraced_plugin.py:12)']


def test_a_changed_method_is_not_proven_by_its_results_and_its_file_is_named(exported, plugin, monkeypatch):
    monkeypatch.setattr(plugin, 'SCALE', 1.02)
    getattr(exported.deployment.family, '_known', {}).clear()  # what tests remember of other weights alone
    vars(exported.deployment).pop('model_classes', None)
    with open(plugin.__file__, 'a') as file:
        file.write('SCALE = 1.02\n')
    verdict, _ = exported.prove()
    assert verdict.title == 'NOT PROVEN' and not any('untraced' in reason for reason in verdict.failures)
    assert 'changed since the export: untraced_plugin.py' in verdict.notes


def test_steps_and_data_sets_of_the_user_are_named(plugin):
    inner = dict(type='MultiScaleFlipAug', transforms=[dict(type='OwnResize')])
    steps = [dict(type='LoadImageFromFile'), inner]
    cfg = types.SimpleNamespace(data=dict(test=dict(type='OwnData', pipeline=steps)))
    cfg.get = lambda key, default=None: getattr(cfg, key, default)
    cfg.filename = 'config.py'
    family = types.SimpleNamespace(untraced=(), samples='images')
    texts = [entry.text for entry in untraced_methods(family, nn.Identity(), cfg)]
    assert texts == [
        'OwnResize (untraced_plugin.py:18): compared by pictures',
        'OwnData (untraced_plugin.py:23): compared by pictures',
    ]
    cfg.data['test'].update(type='OwnNames', pipeline=steps[:1])
    assert untraced_methods(family, nn.Identity(), cfg) == []
