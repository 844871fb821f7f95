"""What follows BEVFusion's graphs is compared with the heads: on synthetic boxes, and with other limits."""

import types

import numpy as np
import pytest
import torch
from test_bevfusion_center_head import head

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_bevfusion
from mmdeploy_ext.consumers.autoware import bevfusion as node
from mmdeploy_ext.consumers.cuda_bevfusion import cuda
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.bevfusion.head_limits import heads_with_other_limits
from mmdeploy_ext.families.bevfusion.reference import BEVFusionReference
from mmdeploy_ext.families.bevfusion.runtime.boxes import suppress
from mmdeploy_ext.families.bevfusion.runtime.model import detections
from mmdeploy_ext.families.bevfusion.synthetic import SPREAD_IN_RANGE, synthetic_outputs, values_of_boxes
from mmdeploy_ext.models.bevfusion.coder import TransFusionBBoxCoder
from mmdeploy_ext.models.bevfusion.head import TransFusionHead
from mmdeploy_ext.proving.levels.synthetic import match_all, synthetic_cases
from planting import called, replaced, result, traced
from toy_spread import spread_out as spread_weights

HERE = 'mmdeploy_ext.families.bevfusion'
HEAD, COUNTED = (
    'mmdeploy_ext.models.bevfusion.head:TransFusionHead',
    'mmdeploy_ext.models.bevfusion.coder:TransFusionBBoxCoder',
)
CIRCLE = dict(classes=[8, 9], radius=0.175, most=83)


def trans_fusion(nms=CIRCLE):
    """Return what decides the suppression of TransFusion's head."""
    made = types.SimpleNamespace(nms=nms)
    made.suppress = types.MethodType(TransFusionHead.suppress, made)
    return made


def judged(model_head, boxes_of, count=200):
    """Return the cases that failed."""
    reference = BEVFusionReference.__new__(BEVFusionReference)
    reference.model = types.SimpleNamespace(heads=dict(object=model_head))
    runner = types.SimpleNamespace(boxes_of=boxes_of)
    made = list(synthetic_outputs(model_head.nms, 10, count))
    assert all(outputs['boxes'].shape == (count, 9) for _, outputs in made)
    return [case.name for case in synthetic_cases(reference, runner, made) if not case.passed]


def small_head(dataset, classes):
    coder = dict(type='TransFusionBBoxCoder', pc_range=[-9, -9], out_size_factor=8, voxel_size=[0.1, 0.1])
    return TransFusionHead(
        in_channels=8,
        hidden_channel=8,
        num_classes=classes,
        ffn_channel=8,
        test_cfg=dict(dataset=dataset, nms_type='circle'),
        bbox_coder=coder,
    )


def test_circle_nms_thins_out_each_class_of_waymo():
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), torch.tensor([0, 0, 1, 1, 2, 2])
    remaining = small_head('Waymo', 3).suppress(
        dict(bboxes=torch.zeros(6, 9), scores=scores, labels=labels)
    )
    assert remaining['scores'].tolist() == scores[::2].tolist()


@pytest.mark.parametrize(('dataset', 'classes', 'needed'), [('nuScenes', 9, 10), ('Waymo', 2, 3)])
def test_fewer_classes_than_those_of_the_data_set_are_refused_by_name(dataset, classes, needed):
    with pytest.raises(ConfigError, match=f'num_classes={classes}, expected {needed} or more'):
        small_head(dataset, classes)


def right(nms):
    return lambda outputs: suppress(detections(outputs), nms)


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
        lambda outputs: suppress(detections(outputs)[::-1], CIRCLE),
        lambda outputs: right(CIRCLE)({**outputs, 'labels': np.abs(outputs['labels'])}),
    ],
    ids=['none', 'no square', 'class before', 'one less', 'all classes', 'not sorted', 'out of range'],
)
def test_a_wrong_suppression_is_seen(wrong):
    assert judged(trans_fusion(), wrong)


@pytest.mark.suite('overlap')
@pytest.mark.parametrize('key', ['overlap', 'most', 'first', 'scales'])
def test_a_wrong_limit_of_rotated_boxes_is_seen(key):
    model_head = head()
    changes = dict(overlap=0.5, most=150, first=100, scales=[5.0, 5.0])
    groups = [dict(group, **{key: changes[key]}) if key in group else group for group in model_head.nms]
    assert judged(model_head, right(groups), 400)


RANGE = (-15.0, -17.0, -2.7, 17.0, 15.0, 0.6)
CODER = TransFusionBBoxCoder([-19.2, -19.2], 8, [0.2, 0.2], RANGE, 0.05)
FACTS = dict(
    pc_range=CODER.pc_range,
    voxel_size=CODER.voxel_size,
    out_size_factor=8,
    post_center_range=RANGE,
    score_threshold=0.05,
)
CONTRACTS = dict(cuda=cuda.detections, node=node.detections)


def failed_of_contract(contract, wrong=lambda found, facts: (found, facts), nms=CIRCLE):
    """Return the synthetic cases of a contract's runtime that failed."""
    reference = BEVFusionReference.__new__(BEVFusionReference)
    model_head = trans_fusion()
    model_head.bbox_coder, model_head.num_classes = CODER, 10
    reference.model = types.SimpleNamespace(heads=dict(object=model_head))

    def boxes_of(outputs):
        return suppress(CONTRACTS[contract](*wrong(outputs, FACTS)), nms)

    made = [
        (title, values_of_boxes(outputs, CODER, 10, of_node=contract == 'node'))
        for title, outputs in synthetic_outputs(CIRCLE, 10, 200, SPREAD_IN_RANGE)
    ]
    cases = list(synthetic_cases(reference, types.SimpleNamespace(boxes_of=boxes_of), made))
    failed = [case.name for case in cases if not case.passed]
    assert len(cases) == 5
    assert failed or sum(row.matched for case in cases for row in case.detections) > 100
    return failed


@pytest.mark.parametrize('contract', CONTRACTS)
def test_what_other_contracts_end_in_is_decoded_as_the_head_does(contract):
    assert failed_of_contract(contract) == []


@pytest.mark.parametrize('contract', CONTRACTS)
@pytest.mark.parametrize(
    'fault',
    [
        dict(nms=None),
        dict(nms=dict(CIRCLE, most=82)),
        dict(wrong=lambda found, facts: (found, dict(facts, post_center_range=None))),
        dict(wrong=lambda found, facts: (found, dict(facts, out_size_factor=7))),
    ],
    ids=['no suppression', 'one less', 'any range', 'another stride'],
)
def test_a_wrong_runtime_of_other_contracts_is_seen(contract, fault):
    assert failed_of_contract(contract, **fault)


@pytest.fixture(scope='module')
def transfusion(tmp_path_factory):
    """Return a small model, and a reference whose head reads one map, a few peaks of each class."""
    folder = tmp_path_factory.mktemp('head')
    changes = toy_bevfusion.merged(toy_bevfusion.CHANGES, toy_bevfusion.LIMITS)
    cfg = load_config(toy_bevfusion.write_config(folder / 'm.py', **changes))
    model = toy_bevfusion.seeded(cfg)
    head = model.heads['object']
    middle = torch.randn(1, 64, 24, 24, generator=torch.Generator().manual_seed(0))
    spread_weights({head.heatmap_head[1]: ([1.5], [-3.0] * 10)}, lambda: head(middle))
    lasts = {
        head.prediction_heads[0][name][-1]: values for name, values in toy_bevfusion.PREDICTED.items()
    }
    spread_weights(lasts, lambda: head(middle))
    return find_family(cfg), model, types.SimpleNamespace(model=model, step=lambda _: head(middle))


def heads_that_fail(transfusion, contract='portable'):
    family, model, reference = transfusion
    options = family.choose(contract=contract, opset=17)
    found = list(heads_with_other_limits(model, options, reference, None))
    assert len(found) == 2 and all(len(expected) for _, expected, _ in found)
    return [title for title, *sides in found if not match_all(*sides).passed]


@pytest.mark.suite('portable')
@pytest.mark.parametrize('contract', ['portable', 'cuda-bevfusion', 'autoware'])
def test_the_exported_head_with_other_limits_finds_what_the_head_finds(transfusion, contract):
    assert heads_that_fail(transfusion, contract) == []


@pytest.mark.suite('a query less')
@pytest.mark.parametrize(
    ('place', 'wrong'),
    [
        pytest.param(
            f'{HEAD}.proposals',
            called(lambda original, self, heat: heat.flatten(1).topk(120).indices),
            marks=pytest.mark.matrix,
        ),
        (f'{HEAD}.proposals', result(lambda cells, *_: torch.cat([cells[:, :-1], cells[:, -2:-1]], 1))),
        (
            f'{COUNTED}.within_limits',
            called(lambda original, self, boxes, scores: original(self, boxes, scores + 1)),
        ),
    ],
    ids=['120 queries', 'a query less', 'no score threshold'],
)
def test_another_limit_in_the_graph_is_seen(transfusion, place, wrong):
    with replaced(place, traced(wrong)):
        assert heads_that_fail(transfusion)
