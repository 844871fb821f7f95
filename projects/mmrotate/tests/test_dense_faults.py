"""Faults of the graphs of rotated one-stage detectors: none of their files is proven.

A fault is in the code that exports, also in the fresh export of the proof: inputs have to show it.
"""

import dataclasses
import functools
from unittest import mock

import pytest
import small_models
import torch

import mmdeploy_ext
from mm2onnx_mmrotate import angles
from mm2onnx_mmrotate.deltas import Delta
from mm2onnx_mmrotate.dense import forms, networks
from mmdeploy_ext.exporting.postprocess import suppression
from mmdeploy_ext.proving.not_shown import untraced_methods

SIZE = dict(height=160, width=192)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Return a function from the name of a model to the paths of its config and checkpoint."""
    folder = tmp_path_factory.mktemp('models')

    @functools.cache
    def paths(name):
        _, _, model = small_models.seeded(name)
        checkpoint = folder / f'{name}.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        return small_models.write_config(name, folder), checkpoint

    return paths


def prove(models, name, folder, form):
    """Export a model, and prove the file."""
    return mmdeploy_ext.export(*models(name), folder / 'model.onnx', form=form, **SIZE).prove()


def changed(module, name, change):
    """Return a context in which `change(result, *arguments)` replaces the result of a function."""
    right = getattr(module, name)
    return mock.patch.object(module, name, lambda *args, **settings: change(right(*args, **settings), *args))


def other_version(facts, *_):
    other = dict(le90='le135', le135='le90', oc='le90')[facts.coder.version]
    return dataclasses.replace(facts, coder=dataclasses.replace(facts.coder, version=other))


def swapped_sides(boxes, *_):
    return boxes[..., [0, 1, 3, 2, 4]]


def upright(boxes, valid, threshold):
    return RIGHT_KEEP(torch.cat([boxes[..., :4], torch.zeros_like(boxes[..., 4:])], -1), valid, threshold)


RIGHT_KEEP = suppression.rotated_keep
WRAP_OFF = dict(angles.VERSIONS, le90=0.0, le135=angles.PI * 3 / 4)
FAULTS = {
    'angle version exchanged': ('retina_le90', lambda: changed(forms, 'facts_of', other_version)),
    'angle version exchanged, le135': ('atss_le135', lambda: changed(forms, 'facts_of', other_version)),
    'wrap at pi/2 off': ('retina_le90', lambda: mock.patch.object(angles, 'VERSIONS', WRAP_OFF)),
    'w and h exchanged': ('retina_oc', lambda: changed(Delta, 'boxes', swapped_sides)),
    'IoU of upright boxes': ('retina_oc', lambda: mock.patch.object(suppression, 'rotated_keep', upright)),
    'NMS class offset missing': (
        'retina_oc',
        lambda: mock.patch.object(suppression, 'rotated_class_offsets', lambda boxes, *_: boxes),
    ),
    'centres are not clipped': (
        'retina_oc',
        lambda: changed(
            forms, 'facts_of', lambda facts, *_: dataclasses.replace(facts, clip_border=False)
        ),
    ),
    'x of a centre taken for the column': (
        'r3det',
        lambda: mock.patch.object(
            networks, 'features_at_centres', lambda maps, boxes, scale: RIGHT_FEATURES(
                maps, boxes[:, [1, 0, 2, 3, 4]], scale
            )
        ),
    ),
    'taps of the kernel turned the other way': (
        's2anet',
        lambda: mock.patch.object(
            networks, 'align_offsets', lambda boxes, *size: RIGHT_OFFSETS(
                torch.cat([boxes[:, :4], -boxes[:, 4:]], 1), *size
            )
        ),
    ),
}  # fmt: skip
RIGHT_FEATURES, RIGHT_OFFSETS = networks.features_at_centres, networks.align_offsets
IN_SUITE = FAULTS.keys() - {'angle version exchanged, le135', 'centres are not clipped'}


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in IN_SUITE else pytest.mark.matrix) for name in FAULTS]
)
def test_a_fault_is_not_proven(name, models, tmp_path):
    model, fault = FAULTS[name]
    models(model)
    with fault():
        verdict = prove(models, model, tmp_path, 'full')
    assert {finding.level for finding in verdict.findings if not finding.passed} == {'outputs'}


@pytest.mark.parametrize('form', ['full', pytest.param('decode', marks=pytest.mark.matrix)])
@pytest.mark.parametrize(
    'model',
    [
        pytest.param(name, marks=[] if name == 'retina_le90' else pytest.mark.matrix)
        for name in small_models.MODELS
    ],
)
def test_the_right_file_is_proven(model, form, models, tmp_path):
    verdict = prove(models, model, tmp_path, form)
    assert verdict.title == 'PROVEN'


def test_a_method_of_the_user_is_named():
    cfg, family, model = small_models.seeded('retina_oc')
    assert untraced_methods(family, model, cfg) == []

    class OtherHead(type(model.bbox_head)):
        def get_bboxes(self, *args, **settings):
            return super().get_bboxes(*args, **settings)

    model.bbox_head.__class__ = OtherHead
    (method,) = untraced_methods(family, model, cfg)
    assert method.subject.startswith('OtherHead.get_bboxes (')
