"""Rules that decode a head's outputs: refused where they do not fit the graph, before memory is taken."""

import dataclasses

import pytest

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families.anchor3d.facts import AnchorFacts
from mmdeploy_ext.runtime.detections3d import check_outputs

RULE = AnchorFacts(
    num_classes=3,
    code_size=7,
    levels=1,
    aligned=True,
    align_corner=False,
    ranges=(-6.4, -6.4, -1.0, 6.4, 6.4, -1.0) * 2,
    sizes=(0.8, 0.6, 1.7, 3.9, 1.6, 1.5),
    rotations=(0.0, 1.57),
    scales=(1.0,),
    size_per_range=True,
    dir_offset=0.0,
    dir_limit_offset=1.0,
    nms_pre=100,
    score_thr=0.1,
    nms_thr=0.1,
    rotated=True,
    max_num=40,
)
SHAPED = dataclasses.replace(RULE, cells=(4, 5, 2, 3))


def spec(**axes):
    tensors = tuple(TensorSpec(name, 'float32', sizes) for name, sizes in axes.items())
    return GraphSpec('anchor3d/head', (TensorSpec('bev', 'float32', (1, 16, 8, 8)),), tensors)


MAPS = spec(cls_score_0=(1, 12, 8, 8), bbox_pred_0=(1, 28, 8, 8), dir_cls_pred_0=(1, 8, 8, 8))
ROWS = spec(cls_score_0=(1, 52, 3), bbox_pred_0=(1, 52, 7), dir_cls_pred_0=(1, 52, 2))


def test_rules_that_fit_are_taken():
    check_outputs(RULE, MAPS, 'head.onnx')
    check_outputs(SHAPED, ROWS, 'head.onnx')
    check_outputs(dataclasses.replace(RULE, size_per_range=False), MAPS, 'head.onnx')
    for rule in (RULE, SHAPED):
        assert AnchorFacts.from_json(rule.to_json()) == rule


@pytest.mark.parametrize(
    ('rule', 'outputs', 'change', 'problem'),
    [
        (RULE, MAPS, dict(rotations=(0.0,) * 5000), "'cls_score_0' as ?x30000x?x?, the graph has 1x12x8x8"),
        (RULE, MAPS, dict(rotations=(0.0,)), "'cls_score_0' as ?x6x?x?, the graph has 1x12x8x8"),
        (RULE, MAPS, dict(num_classes=7), "'cls_score_0' as ?x28x?x?"),
        (RULE, MAPS, dict(code_size=9), "'bbox_pred_0' as ?x36x?x?"),
        (
            RULE,
            MAPS,
            dict(levels=2, scales=(1.0, 2.0)),
            "needs the output 'cls_score_1', the graph has cls_score_0",
        ),
        (RULE, MAPS, dict(cells=(4, 5, 2, 3)), "'cls_score_0' as ?x52x3"),
        (SHAPED, ROWS, dict(cells=(4, 5, 2, 4)), "'cls_score_0' as ?x56x3, the graph has 1x52x3"),
    ],
)
def test_a_rule_that_does_not_fit_the_outputs_is_refused(rule, outputs, change, problem):
    with pytest.raises(ModelFileError) as refused:
        check_outputs(dataclasses.replace(rule, **change), outputs, 'head.onnx')
    assert 'head.onnx: its mm2onnx metadata is damaged (mm2onnx.postprocess: ' in str(refused.value)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (dict(ranges=[0.0] * 11), 'ranges has 11 numbers, expected 6 for each'),
        (dict(sizes=[1.0] * 5), 'sizes has 5 numbers, expected 3 for each'),
        (dict(sizes=[1.0] * 3), 'sizes has 1 entries, ranges has 2'),
        (dict(cells=[4, 5]), 'cells has 1 entries, ranges has 2'),
        (dict(scales=[1.0, 2.0]), 'scales has 2 entries, levels is 1'),
    ],
)
def test_facts_of_anchors_that_do_not_go_together_are_refused(change, problem):
    with pytest.raises(ModelFileError) as refused:
        AnchorFacts.from_json(RULE.to_json() | change, 'head.onnx')
    assert problem in str(refused.value)
