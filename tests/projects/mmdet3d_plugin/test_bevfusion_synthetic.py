"""What follows BEVFusion's frame graph is compared with the heads on synthetic boxes of it."""

import types

import numpy as np
import pytest
from test_bevfusion_center_head import head

from mmdeploy_ext.proof.levels.synthetic import synthetic_cases
from mmdeploy_ext.runtime.bevfusion_det.frames import spread_out
from mmdeploy_ext.runtime.bevfusion_det.model import detections
from projects.mmdet3d_plugin.bevfusion.head import TransFusionHead
from projects.mmdet3d_plugin.bevfusion.reference import Reference
from projects.mmdet3d_plugin.bevfusion.synthetic import synthetic_outputs

CIRCLE = dict(classes=[8, 9], radius=0.175, most=83)


def trans_fusion(nms=CIRCLE):
    """Return what decides the suppression of TransFusion's head."""
    made = types.SimpleNamespace(nms=nms)
    made.spread_out = types.MethodType(TransFusionHead.spread_out, made)
    return made


def judged(model_head, boxes_of, count=200):
    """Return the cases that failed."""
    reference = Reference.__new__(Reference)
    reference.model = types.SimpleNamespace(heads=dict(object=model_head))
    runner = types.SimpleNamespace(boxes_of=boxes_of)
    made = list(synthetic_outputs(model_head.nms, 10, count))
    assert all(outputs['boxes'].shape == (count, 9) for _, outputs in made)
    return [case.name for case in synthetic_cases(reference, runner, made) if not case.passed]


def right(nms):
    return lambda outputs: spread_out(detections(outputs), nms)


@pytest.mark.parametrize(
    'make', [trans_fusion, lambda: trans_fusion(None), head], ids=['circle', 'none', 'centers']
)
def test_the_runtime_keeps_what_the_head_keeps(make):
    model_head = make()
    assert judged(model_head, right(model_head.nms)) == []


@pytest.mark.parametrize(
    'wrong',
    [
        right(None),
        right(dict(CIRCLE, radius=CIRCLE['radius'] ** 2)),
        right(dict(CIRCLE, classes=[7, 8])),
        right(dict(CIRCLE, most=82)),
        right([dict(classes=list(range(10)), radius=0.175, most=83)]),
        lambda outputs: spread_out(detections(outputs)[::-1], CIRCLE),
        lambda outputs: right(CIRCLE)({**outputs, 'labels': np.abs(outputs['labels'])}),
    ],
    ids=['none', 'no square', 'class before', 'one less', 'all classes', 'not sorted', 'out of range'],
)
def test_a_wrong_suppression_is_seen(wrong):
    assert judged(trans_fusion(), wrong)


@pytest.mark.parametrize('key', ['overlap', 'most', 'first', 'scales'])
def test_a_wrong_limit_of_rotated_boxes_is_seen(key):
    model_head = head()
    changes = dict(overlap=0.5, most=150, first=100, scales=[5.0, 5.0])
    groups = [dict(group, **{key: changes[key]}) if key in group else group for group in model_head.nms]
    assert judged(model_head, right(groups), 400)
