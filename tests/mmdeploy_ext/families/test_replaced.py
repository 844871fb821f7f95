"""What graphs compute in place of methods of a model: which versions they follow, and which differ."""

import functools

import pytest

from mmdeploy_ext.families import replaced
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.proving.results import Check, GraphResult
from mmdeploy_ext.proving.verdict import Verdict
from mmdeploy_ext.proving.views.table import code_lines
from toy_atss import load_toy

FOLLOWING = ('dense',)
"""Families that say which methods their graphs compute."""


@pytest.mark.parametrize('name', FOLLOWING)
def test_tables_follow_the_installed_methods(name):
    family = FAMILIES[name]
    table = replaced.table_of(replaced.folder_of(family))
    installed = replaced.installed_hashes(family.followed)
    assert list(replaced.changed_hashes(table, installed)) == []
    assert all(installed.values())  # no class or module without any of the methods


def test_a_changed_method_of_a_library_is_named():
    table = dict(ATSSHead=dict(get_bboxes=['0' * 16]))
    installed = dict(ATSSHead=dict(get_bboxes='1' * 16))
    (line,) = replaced.changed_hashes(table, installed)
    assert line.startswith('ATSSHead.get_bboxes: the installed one is 1111')


@pytest.fixture(scope='module')
def deployment():
    return load_toy()


def differing(deployment):
    return [method.text for method in deployment.family.differing_methods(deployment.model)]


def test_the_toy_has_the_methods_that_its_graph_follows(deployment):
    assert differing(deployment) == []


def test_a_subclass_with_a_method_of_its_own_is_said_with_its_lines(deployment, monkeypatch):
    head = deployment.model.bbox_head
    kind = type(head)

    class MyHead(kind):
        def _bbox_post_process(self, *args, **kwargs):
            return super()._bbox_post_process(*args, **kwargs)

        def forward(self, feats):
            """Of the user's layers: the graph runs them."""
            return super().forward(feats)

    monkeypatch.setattr(head, '__class__', MyHead)
    (text,) = differing(deployment)
    assert text.startswith('MyHead._bbox_post_process differs from the one this export follows (')
    assert 'test_replaced.py lines ' in text


@pytest.mark.parametrize('owner', ['detector', 'instance', 'module', 'wrapper'])
def test_methods_that_were_replaced_elsewhere_are_said(deployment, monkeypatch, owner):
    from mmdet.core.post_processing import bbox_nms
    from mmdet.models.detectors import SingleStageDetector

    def other(*args, **kwargs):
        return None

    if owner == 'detector':
        monkeypatch.setattr(type(deployment.model), 'forward_test', other)
    elif owner == 'instance':
        monkeypatch.setattr(deployment.model.bbox_head, 'get_bboxes', other, raising=False)
    elif owner == 'module':
        monkeypatch.setattr(bbox_nms, 'multiclass_nms', other)
    else:
        monkeypatch.setattr(
            SingleStageDetector, 'simple_test', functools.wraps(SingleStageDetector.simple_test)(other)
        )
    (text,) = differing(deployment)
    name = dict(
        detector='ATSS.forward_test',
        instance='ATSSHead.get_bboxes',
        module='mmdet.core.post_processing.bbox_nms.multiclass_nms',
        wrapper='ATSS.simple_test',
    )[owner]
    assert text.startswith(f'{name} differs from ')


def test_inputs_decide_where_a_method_differs():
    method = replaced.DifferingMethod('MyHead.forward', 'plugin/head.py', 120, 163, 'ATSSHead')
    verdict = Verdict({}, graphs=[GraphResult('', 9, True)], structure=[Check('opset', True)])
    verdict.differing_methods = [method]
    assert verdict.by_inputs == 'MyHead.forward differs'
    (line,) = code_lines(verdict)
    assert line == f'inputs decide: {method.text}'
    assert method.text.endswith('differs from the one this export follows (plugin/head.py lines 120-163)')
    (entry,) = verdict.to_json()['differing_methods']
    assert entry['text'] == method.text and entry['first'] == 120
