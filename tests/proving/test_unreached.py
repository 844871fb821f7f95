"""Limits that no input of a proof reached are named, with the most that any input had."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.ops import nms, nms_rotated, soft_nms
from onnx import helper, numpy_helper

from mmdeploy_ext.proving.float64 import in_float64
from mmdeploy_ext.proving.not_shown import Watch, count_voxels, counts_of_images, limits_of, unreached
from mmdeploy_ext.runtime.preprocess.points import voxelise
from mmdeploy_ext.spec.preparation import VoxelRule
from mmdeploy_ext.spec.results import Case
from mmdeploy_ext.upstream.compat import mmcv_operators


def test_a_limit_is_named_if_something_was_counted_and_less_than_it():
    cases = [
        Case('a', '', False, counts=dict(max_per_img=97, max_candidates=40)),
        Case('b', '', False, counts=dict(max_per_img=3)),
    ]
    limits = dict(max_per_img=100, max_candidates=40, nms_pre=1000, score_thr=0.5, type='full')
    assert unreached(limits, cases, '--images') == [
        'max_per_img 100 (most found 97): reach it with --images, or lower it with --cfg-options in export '
        'and verify'
    ]
    assert unreached(dict(max_per_img=-1), cases, '--images') == unreached({}, cases, '--images') == []


def test_limits_of_proposals_are_those_of_rpn():
    facts = dict(max_per_img=100, proposals=dict(nms_pre=1000, max_per_img=300))
    cases = [Case('a', '', False, counts={'max_per_img': 100, 'rpn.nms_pre': 640, 'rpn.max_per_img': 300})]
    (line,) = unreached(limits_of(facts, dict(form='full')), cases, '--images')
    assert line.startswith('rpn.nms_pre 1000 (most found 640)')
    assert limits_of(dict(max_per_img=100), {}) == dict(max_per_img=100)


def test_the_fullest_picture_of_a_batch_counts():
    outputs = dict(candidates=np.array([7, 9]), proposal_candidates=np.array([4, 2]), labels=np.zeros(3))
    counts = counts_of_images([range(3), range(5)], outputs)
    assert counts == dict(max_candidates=9, max_proposals=4, max_per_img=5)


def test_voxels_are_counted_without_their_limit():
    points = np.random.default_rng(0).uniform(-2, 2, (200, 4)).astype(np.float32)
    rule = VoxelRule((-1.0, -2.0, -0.5, 1.0, 1.0, 1.0), (0.5, 0.25, 1.5), 5, 10**6, 'zyx', 4)
    count = len(voxelise(points, rule)[0])
    assert count_voxels(points, rule) == count > 10
    assert count_voxels(points, dataclasses.replace(rule, max_voxels=3)) == count
    assert count_voxels(points[:0], rule) == 0


def test_a_threshold_and_a_clip_that_no_value_came_near_are_named():
    def decode(x):
        kept = x[x > 0.05]
        kept = kept.clamp(min=0.1, max=4.0)
        return kept[kept >= 0.5]

    watch, other = Watch(), Watch()
    with watch:
        decode(torch.tensor([0.04, 0.3, 2.0]))
        assert not (torch.rand(3) < 0).any()  # a sign is no threshold
    lines = watch.lines(dict(score_thr=0.05, nms=dict(iou_threshold=0.5), max_per_img=4), '--images')
    assert [line.split(' (')[0] for line in lines] == [
        'score_thr 0.05',
        'iou_threshold 0.5',
        'clip 0.1',
        'clip 4',
    ]
    with other:
        decode(torch.tensor([0.05, 0.05001, 0.4999, 0.5, 4.1]))
    watch.add(other)
    assert not watch.lines({}, '--images')


def test_a_setting_of_0_is_named_and_a_sign_is_not():
    cfg = SimpleNamespace(min_bbox_size=0)

    def wide(sides, out_of):
        kept = (sides > cfg.min_bbox_size) & out_of.ge(0) & (out_of >= 0)
        return kept | sides.gt(cfg.min_bbox_size)

    watch, near = Watch(), Watch()
    with watch:
        wide(torch.tensor([0, 3.5]), torch.rand(2))
    first, second = watch.lines(dict(score_thr=0.0), '--images')
    assert first.startswith('min_bbox_size 0 (test_unreached.py:') and 'nearest values 0 and 3.5' in first
    assert second.startswith('min_bbox_size 0 (')
    with near:
        wide(torch.tensor([-1e-4, 1e-4]), torch.rand(2))
    assert not near.lines({}, '--images')


def test_settings_of_one_number_are_told_apart_by_the_code_or_all_named():
    settings = dict(iou_threshold=0.5, mask_thr=0.5, other_thr=0.4)

    def paste(masks, mask_thr, threshold):
        return masks >= mask_thr, masks >= threshold

    watch = Watch()
    with watch:
        paste(torch.tensor([0.2, 0.7]), 0.5, 0.5)
        nms(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4]]), torch.tensor([0.9, 0.8]), 0.5)
    names = [line.split(' (')[0] for line in watch.lines(settings, '--images')]
    assert names == ['mask_thr 0.5', 'iou_threshold or mask_thr 0.5', 'iou_threshold 0.5']


def test_runs_that_measure_rounding_are_not_watched():
    watch, model = Watch(), torch.nn.Linear(4, 4)
    with watch, torch.no_grad():
        for seed in (None, 0):
            with in_float64(model, seed):
                values = torch.relu(model(torch.rand(2, 4)))
                values[values > 0.3].clamp(max=9.0)
    assert not watch.gaps and not watch.ends


def test_the_threshold_of_a_compiled_suppression_that_no_overlap_came_near_is_named():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 7], [30, 0, 40, 10]])
    watch, near = Watch(), Watch()
    with watch:
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5)[1]
    assert kept.tolist() == [0, 1, 3]  # overlaps 0.4 of two kept boxes, 0.7 of a suppressed one
    (line,) = watch.lines(dict(nms=dict(iou_threshold=0.5)), '--images')
    assert line.startswith('iou_threshold 0.5 (') and 'nearest values 0.4 and 0.7' in line
    boxes[1, 3], boxes[2, 1], boxes[2, 3] = 4.999, 4.999, 10
    with near:
        nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5)
    nms(boxes, torch.ones(4), 0.3)
    assert not near.lines({}, '--images') and len(near.gaps) == 1


ROTATED = torch.tensor([[5.0, 5, 10, 10, 0.3], [5, 5, 10, 4, 0.3], [5, 5, 10, 7, 0.3], [35, 5, 10, 10, 0]])


@pytest.mark.parametrize('compiled', [True, False])
def test_a_suppression_of_rotated_boxes_is_watched(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(sys.modules['mmcv.ops.nms'].ext_module, 'nms_rotated', mmcv_operators.nms_rotated)
    watch = Watch()
    with watch:
        kept = nms_rotated(ROTATED, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5)[1]
    assert kept.tolist() == [0, 1, 3]
    ((use, gap),) = watch.gaps.items()
    assert use.number == 0.5 and np.allclose(gap, (0.4, 0.7), atol=1e-5)


def test_a_soft_suppression_is_watched_until_it_removes_a_box():
    boxes, scores = (
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 2, 10, 10]]),
        torch.tensor([0.9, 0.8, 0.7]),
    )
    watch, hard, smooth = Watch(), Watch(), Watch()
    with watch:  # the second falls to 0.16 and is removed, the third to 0.14
        kept = soft_nms(boxes, scores, 0.5, min_score=0.15)[1]
    assert kept.tolist() == [0, 1]
    iou, score = watch.lines(dict(iou_threshold=0.5, min_score=0.15), '--images')
    assert iou.startswith('iou_threshold 0.5 (') and 'nearest values -inf and 0.8' in iou
    assert score.startswith('min_score 0.15 (') and 'nearest values 0.14 and 0.16' in score
    with hard:
        assert soft_nms(boxes, scores, 0.9, min_score=0.15, method='naive')[1].tolist() == [0, 1, 2]
    assert 'nearest values 0.8 and inf' in hard.lines({}, '--images')[0]
    with smooth:
        assert soft_nms(boxes, scores, 0.5, min_score=0.15, method='gaussian')[1].tolist() == [0, 1]
    ((use, gap),) = smooth.gaps.items()
    assert use.name == 'min_score'
    assert np.allclose(gap, [0.7 * np.exp(-2 * (0.8**2 + 0.6**2)), 0.7 * np.exp(-2 * 0.8**2)])


def attribute(epsilon):
    return [helper.make_node('LayerNormalization', ['x', 'w'], ['y'], 'norm', epsilon=epsilon)], []


def added(epsilon):
    """A normalisation as exporters write it below opset 17."""
    nodes = [
        helper.make_node('ReduceMean', ['x'], ['m'], axes=[-1]),
        helper.make_node('Add', ['m', 'e'], ['v'], 'norm'),
        helper.make_node('Sqrt', ['v'], ['y']),
    ]
    return nodes, [numpy_helper.from_array(np.float32(epsilon), 'e')]


@pytest.mark.parametrize('form', [attribute, added])
def test_an_epsilon_that_no_normalisation_of_the_code_has_is_a_reason(form):
    def model(epsilon):
        nodes, numbers = form(epsilon)
        return helper.make_model(helper.make_graph(nodes, 'g', [], [], numbers))

    watch = Watch()
    assert not watch.other_epsilons(model(1e-4))
    with watch:
        torch.nn.LayerNorm(4)(torch.rand(2, 4))
    assert not watch.other_epsilons(model(1e-5))
    (reason,) = watch.other_epsilons(model(1e-4))
    assert 'norm' in reason and '0.0001' in reason
