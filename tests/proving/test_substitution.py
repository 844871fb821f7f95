"""The user's test path on a file's own tensors: what is put in, what is excused, and planted faults."""

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
import torch

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.exporting.substitution import without_limits
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.runtime.tasks.bbox2d import ONE_TO_ONE, match_detections, pair_up
from mmdeploy_ext.spec.matching import Ties, accept_rest
from mmdeploy_ext.spec.results import Case, DetectionRow
from proofs import prove, samples_alone
from toy_atss import PICTURE, export_toy, load_demo
from verdicts import cases_of


def boxes(*rows):
    rows = np.float32(rows)
    return Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64))


FIRST, SECOND = (0, 0, 40, 40), (100, 100, 150, 160)


LAST = (300, 300, 340, 350, 0.2)


def matched(reference, candidate, every=(), **settings):
    """Return the row of two lists; PyTorch has `every` box without limits, with its score or 0.5."""
    without_limits = boxes(LAST, *((*box, 0.5)[:5] for box in every))
    pair_by = functools.partial(pair_up, iou_bar=ONE_TO_ONE['iou_bar'], score_bar=ONE_TO_ONE['score_bar'])
    tied = Ties((reference, candidate), lambda: without_limits, pair_by, settings)
    return match_detections('a', reference, candidate, tied=tied, **ONE_TO_ONE)


@pytest.mark.parametrize(
    ('score', 'every', 'passed'),
    [
        (0.500005, [FIRST, SECOND], True),  # PyTorch has both, and took the other one
        (0.50002, [FIRST, SECOND], False),  # no tie
        (0.500005, [FIRST], False),  # PyTorch has no such box
    ],
)
def test_a_choice_among_equal_scores_is_listed_and_nothing_else_is_excused(score, every, passed):
    reference, candidate = boxes((*FIRST, 0.5), LAST), boxes((*SECOND, score), LAST)
    row = matched(reference, candidate, every)
    assert row.passed == passed and len(row.excused) == passed
    assert (row.missing, row.extra) == (not passed, not passed)


@pytest.mark.parametrize(('score', 'passed'), [(0.300008, True), (0.299992, True), (0.3001, False)])
def test_a_single_box_is_excused_at_a_threshold_alone(score, passed):
    one, none = boxes(LAST, (*FIRST, score)), boxes(LAST)
    for sides in ((one, none), (none, one)):
        every = [(*FIRST, score)]
        assert matched(*sides, every, nms=dict(iou_threshold=0.3), score_thr=0.3).passed == passed
        assert not matched(*sides, every, nms=dict(iou_threshold=0.3), max_per_img=1).passed
    assert not matched(none, one, nms=dict(iou_threshold=0.3), score_thr=0.3).passed, 'not in PyTorch'


def test_pytorchs_score_decides_whether_a_box_is_at_a_threshold():
    none, at_threshold = boxes(LAST), boxes(LAST, (*FIRST, 0.300002))
    for score, passed in ((0.300006, True), (0.300011, False)):
        assert matched(none, at_threshold, [(*FIRST, score)], score_thr=0.3).passed == passed


def test_boxes_behind_a_choice_are_excused_where_they_overlap_it():
    near, far = (5, 5, 42, 42), (200, 5, 240, 42)
    for box, passed in ((near, True), (far, False)):
        reference = boxes((*FIRST, 0.5), LAST)
        candidate = boxes((*SECOND, 0.5), (*box, 0.4), LAST)
        row = matched(reference, candidate, [FIRST, SECOND, (*box, 0.4)])
        assert row.passed == passed and len(row.excused) == 1 + passed
        assert not matched(reference, candidate, [FIRST, SECOND]).passed, 'PyTorch has no such box'


def test_the_last_of_a_full_list_may_be_another_of_the_same_score():
    reference, candidate = boxes(LAST, (*FIRST, 0.1)), boxes(LAST, (*SECOND, 0.1))
    every = [(*FIRST, 0.1), (*SECOND, 0.1)]
    assert matched(reference, candidate, every, max_per_img=2).passed
    assert not matched(reference, candidate, every[:1], max_per_img=2).passed


def test_a_result_that_follows_at_the_end_of_a_full_list_is_one_of_pytorchs():
    same = [(20 * index, 400, 20 * index + 9, 409, 0.9 - 0.01 * index) for index in range(30)]
    near, far = (105, 105, 152, 162, 0.4), (200, 5, 240, 42, 0.1)
    reference, candidate = boxes(*same, (*FIRST, 0.5), near), boxes(*same, (*SECOND, 0.5), far)
    every = [*same, FIRST, SECOND, near]
    assert matched(reference, candidate, [*every, far], max_per_img=32).passed
    assert not matched(reference, candidate, [*every, far], max_per_img=40).passed, 'not full'
    assert not matched(reference, candidate, every, max_per_img=32).passed, 'not in PyTorch'


def test_ties_excuse_a_tenth_of_a_samples_results_at_most():
    every = [(20 * index, 0, 20 * index + 9, 9) for index in range(40)]
    same = [(*box, 0.9 - 0.01 * index) for index, box in enumerate(every[:20])]
    for count, passed in ((2, True), (3, False)):
        reference = boxes(*same, *((*box, 0.5) for box in every[20 : 20 + count]))
        candidate = boxes(*same, *((*box, 0.5) for box in every[30 : 30 + count]))
        assert matched(reference, candidate, [*same, *every[20:]]).passed == passed


def test_where_most_scores_are_equal_any_of_them_may_be_chosen():
    every = [(20 * index, 0, 20 * index + 9, 9, 0.5) for index in range(40)]
    reference, candidate = boxes(*every[:12]), boxes(*every[20:32])
    assert matched(reference, candidate, every).passed
    assert not matched(reference, candidate, every[:20]).passed, 'not in PyTorch'


def test_a_box_that_moved_is_no_choice_although_its_score_is_the_same():
    reference, candidate = boxes((*FIRST, 0.5)), boxes((0, 0, 40, 40.5, 0.5))
    row = matched(reference, candidate, [FIRST])
    assert not row.passed and row.outside == 1 and 'nearest class 0' in row.alone[0]


def test_two_overlapping_boxes_of_pytorch_with_equal_scores_suppress_each_other_in_either_order():
    near = (0, 0, 40, 48)
    reference, candidate = boxes((*FIRST, 0.5), LAST), boxes((*near, 0.5), LAST)
    assert matched(reference, candidate, [FIRST, near]).passed
    assert not matched(reference, candidate, [FIRST, (*near, 0.50002)]).passed, 'no tie'
    assert not matched(reference, candidate, [FIRST]).passed, 'not in PyTorch'


def test_segments_of_a_map_have_no_scores_that_could_tie():
    masks = np.eye(3, dtype=bool)[:, None]
    one, other = (
        Segments(masks[[i]], np.ones(1, np.float32), np.zeros(1, int), np.array([i])) for i in (0, 1)
    )
    tied = Ties((one, other), lambda: one, lambda *_: None, dict(max_per_image=1))
    assert tied([0], [0], {}) == []


def row_of(reference, missing=0, **fields):
    matched = reference - missing
    return DetectionRow(
        'a', reference, matched, missing, 0, 1.0, 0.0, not missing, alone=('one',) * missing, **fields
    )


def case_of(total, missing=0, whole=True, substituted=None, **fields):
    substituted = row_of(total) if substituted is None else substituted
    rows = dict(detections=(row_of(total, missing),), substituted=(substituted,)) | fields
    return Case('dark', '', False, whole=whole, **rows)


@pytest.mark.parametrize(
    ('case', 'accepted'),
    [
        (case_of(100, 10), True),
        (case_of(100, 11), False),
        (case_of(1000, 1, whole=False), False),  # a border was not compared
        (case_of(1000, 1, substituted=row_of(1000, 1)), False),
        (case_of(1000, 1, inner=(row_of(1000, 1),)), False),
        (case_of(1000, 1, engines=(row_of(1000, 1),)), False),
        (Case('dark', '', False, detections=(row_of(1000, 1),), whole=True), False),
        (case_of(1000, detections=(dataclasses.replace(row_of(1000, 1), broken=True),)), False),
    ],
)
def test_results_are_left_over_only_where_every_part_was_compared_and_are_listed(case, accepted):
    got, lines = accept_rest([case, Case('bright', '', False)])
    assert all(row.passed for row in got[0].detections) == accepted
    assert lines == (['dark: one'] * case.detections[0].missing if accepted else [])
    assert got[0].parts == case.parts


PICTURES = [('toy.jpg', read_image(PICTURE))]
OPENED = dict(atss=dict(nms_pre=20, score_thr=0.001, max_per_img=1000), retinanet=dict(max_per_img=1000))
"""Toy -> settings with which a limit is reached and no other hides it."""


def proven(detector, path, fault):
    """Return the verdict on a file that was exported with a fault in its settings, which is not compared."""
    with fault:
        export_toy(detector, path, height=128, width=160)
    with samples_alone():
        return prove(detector, str(path), PICTURES, edited=True, timed=False)


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        pytest.param('atss', None, marks=pytest.mark.matrix),
        ('atss', lambda cfg: dict(nms_pre=cfg.nms_pre - 1)),
        pytest.param('retinanet', lambda cfg: dict(score_thr=cfg.score_thr * 1.02), marks=pytest.mark.matrix),
    ],
    ids=['right', 'nms_pre', 'score_thr'],
)
def test_a_changed_limit_shows_in_the_results_of_the_files_tensors(tmp_path, name, change):
    detector = load_demo(name)
    cfg = detector.model.bbox_head.test_cfg
    with contextlib.ExitStack() as stack:
        for key, value in OPENED.get(name, {}).items():  # on both sides
            stack.enter_context(replaced_entry(cfg, key, value))
        fault = contextlib.ExitStack()
        for key, value in (change(cfg) if change else {}).items():
            fault.enter_context(replaced_entry(cfg, key, value))
        verdict = proven(detector, tmp_path / 'm.onnx', fault)
    rows = [row for case in cases_of(verdict) for row in case.substituted]
    assert rows and all(row.passed for row in rows) == (change is None), verdict.failures


def test_without_limits_a_head_that_takes_its_best_takes_all():
    head = torch.nn.Module()
    head.test_cfg = dict(max_per_img=2)
    scores = torch.tensor([0.3, 0.9, 0.5])
    with without_limits(head):
        assert scores.topk(head.test_cfg['max_per_img'], sorted=False).values.numel() == 3
        assert torch.topk(scores, k=head.test_cfg['max_per_img'], dim=0).indices.tolist() == [1, 2, 0]
    assert scores.topk(head.test_cfg['max_per_img']).indices.tolist() == [1, 2]


def test_without_limits_results_with_masks_stay_countable():
    head = torch.nn.Module()
    for max_per_img, all_results in ((100, 1000), (300, 1000), (2000, 2000)):
        head.test_cfg = dict(max_per_img=max_per_img, mask_thr_binary=0.5, nms=dict(iou_threshold=0.5))
        with without_limits(head):
            assert head.test_cfg['max_per_img'] == all_results
            assert head.test_cfg['nms']['iou_threshold'] == 1
