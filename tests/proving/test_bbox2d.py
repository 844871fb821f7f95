"""Matching detections: every fault fails, rounding at the edges does not, order does not matter."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.tasks.bbox2d import match_detections


def detections(boxes, scores, labels) -> Detections:
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int64),
    )


SCENE = detections(
    [[10, 10, 60, 50], [100, 20, 180, 90], [30, 120, 90, 200], [200, 200, 300, 280]],
    [0.9, 0.7, 0.4, 0.1],
    [0, 1, 0, 2],
)


def changed(boxes=None, scores=None, labels=None) -> Detections:
    values = dict(bboxes_xyxy=boxes, scores=scores, labels=labels)
    return dataclasses.replace(SCENE, **{name: value for name, value in values.items() if value is not None})


def take(order) -> Detections:
    return Detections(SCENE.bboxes_xyxy[order], SCENE.scores[order], SCENE.labels[order])


def nudged(array, index, by):
    array = array.copy()
    array.flat[index] += by
    return array


FAULTS = {
    'one missing': take([0, 1, 3]),
    'a duplicate': take([0, 0, 1, 2, 3]),
    'a duplicate instead of another': take([0, 1, 3, 3]),
    'labels permuted': changed(labels=SCENE.labels[::-1].copy()),
    'one label': changed(labels=nudged(SCENE.labels, 2, 1)),
    'scores permuted': changed(scores=SCENE.scores[::-1].copy()),
    'boxes permuted': changed(boxes=SCENE.bboxes_xyxy[::-1].copy()),
    'one box shifted by a pixel': changed(boxes=nudged(SCENE.bboxes_xyxy, 4, 1)),
    'one score off': changed(scores=nudged(SCENE.scores, 1, 2e-4)),
    'all zero': detections(np.zeros((4, 4)), np.zeros(4), np.zeros(4)),
    'NaN box': changed(boxes=nudged(SCENE.bboxes_xyxy, 5, np.nan)),
    'NaN score': changed(scores=nudged(SCENE.scores, 3, np.nan)),
    'fewer labels than boxes': changed(labels=SCENE.labels[:-1]),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_fails_in_both_directions(fault):
    for reference, candidate in ((SCENE, FAULTS[fault]), (FAULTS[fault], SCENE)):
        row = match_detections('a.jpg', reference, candidate)
        assert not row.passed and row.reason, row


def test_the_same_detections_in_another_order_pass():
    row = match_detections('a.jpg', SCENE, take([3, 1, 0, 2]))
    assert row.passed and (row.reference, row.matched, row.missing, row.extra) == (4, 4, 0, 0)
    assert (row.worst_iou, row.worst_score, row.reason) == (1.0, 0.0, '')


def test_a_row_counts_missing_extra_and_pairs_outside_the_bars():
    boxes = [[10, 10, 60, 52], [100, 20, 180, 90], [0, 0, 5, 5], [60, 120, 120, 200]]  # the last half beside
    candidate = detections(boxes, [0.9, 0.7, 0.6, 0.4], [0, 1, 2, 0])
    row = match_detections('a.jpg', SCENE, candidate)
    assert (row.reference, row.matched, row.missing, row.extra, row.outside) == (4, 1, 2, 2, 1)
    assert row.worst_iou == 1.0 and not row.passed  # of the pair that matched


def test_a_score_that_crosses_the_threshold_by_rounding_is_no_fault():
    low, high = (changed(scores=np.array([0.9, 0.7, 0.4, 0.05 + step], np.float32)) for step in (-2e-5, 2e-5))
    assert match_detections('a.jpg', low, high).passed
    assert match_detections('a.jpg', high, low).passed
    for score, passes in ((0.05009, True), (0.0502, False)):  # of a box that the reference lacks
        extra = changed(scores=np.array([0.9, 0.7, 0.4, score], np.float32))
        assert match_detections('a.jpg', take([0, 1, 2]), extra).passed == passes


def test_boxes_below_the_threshold_count_on_neither_side():
    faint = changed(scores=np.array([0.9, 0.7, 0.4, 0.02], np.float32))
    assert match_detections('a.jpg', faint, take([0, 1, 2])).reference == 3
    assert match_detections('a.jpg', faint, take([0, 1, 2])).passed
    assert match_detections('a.jpg', take([0, 1, 2]), faint).passed


def test_equal_boxes_without_nms_are_not_paired_the_wrong_way_round():
    box = np.array([[10, 10, 60, 50]], np.float32)
    reference = detections(np.concatenate([box, box + 1e-5]), [0.8, 0.3], [1, 1])
    candidate = detections(np.concatenate([box + 1e-5, box]), [0.8, 0.3], [1, 1])
    assert match_detections('a.jpg', reference, candidate).passed


def test_a_chain_of_close_scores_finds_the_one_assignment_that_fits():
    box = np.tile(np.array([[10, 10, 60, 50]], np.float32), (3, 1))
    reference = detections(box, [0.50000, 0.50008, 0.50016], [0, 0, 0])
    candidate = detections(box, [0.50008, 0.50016, 0.50024], [0, 0, 0])
    assert match_detections('a.jpg', reference, candidate).matched == 3


@pytest.mark.parametrize(('end', 'same'), [(384.0012, True), (384.3, False)])
@pytest.mark.parametrize('axes', [[0, 1, 2, 3], [1, 0, 3, 2]])
def test_a_sliver_is_compared_by_the_side_that_it_has(axes, end, same):
    sliver, other = (detections(np.array([[256, 164, 256, y2]])[:, axes], [0.5], [0]) for y2 in (384, end))
    assert match_detections('a.jpg', sliver, other).passed == same


def test_results_below_the_threshold_are_counted_and_those_without_an_equal():
    low = changed(scores=np.array([0.9, 0.7, 0.03, 0.02], np.float32))
    row = match_detections('a.jpg', low, low)
    assert row.passed and (row.low, row.low_alone) == (4, 0)
    moved = low.bboxes_xyxy.copy()
    moved[3] = [0, 0, 20, 20]
    row = match_detections('a.jpg', low, changed(boxes=moved, scores=low.scores))
    assert row.passed and (row.low, row.low_alone) == (4, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_rounding_passes_in_any_order_and_dropping_one_box_never_does(seed, count):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 500, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 200, (count, 2))], 1)
    reference = detections(boxes, rng.uniform(0.06, 1, count), rng.integers(0, 3, count))
    order = rng.permutation(count)
    noise = rng.uniform(-1e-3, 1e-3, (count, 4))
    scores = reference.scores + rng.uniform(-5e-5, 5e-5, count)
    candidate = detections((boxes + noise)[order], scores[order], reference.labels[order])
    row = match_detections('a.jpg', reference, candidate)
    assert row.passed and row.matched == count
    fewer = Detections(candidate.bboxes_xyxy[1:], candidate.scores[1:], candidate.labels[1:])
    assert not match_detections('a.jpg', reference, fewer).passed
    assert not match_detections('a.jpg', fewer, reference).passed
