"""3D detections match one to one by class and place; what differs is seen, what only rounds is not."""

import dataclasses

import numpy as np
import pytest

from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.tasks import match_bars, task_module
from mmdeploy_ext.runtime.tasks.bbox3d import match_detections
from mmdeploy_ext.spec.matching import maximum_matching
from mmdeploy_ext.spec.results import bars_of


def make(count=12, seed=0):
    rng = np.random.default_rng(seed)
    low, high = [-40, -40, -2, 0.5, 0.5, 1, -3.1, -5, -5], [40, 40, 0, 5, 2, 2, 3.1, 5, 5]
    boxes = rng.uniform(low, high, (count, 9)).astype(np.float32)
    scores = np.sort(rng.uniform(0.15, 0.9, count))[::-1].astype(np.float32)
    return Detections3D(boxes, scores, rng.integers(0, 10, count))


def changed(detections, row, column, by):
    boxes = detections.boxes.copy()
    boxes[row, column] += by
    return dataclasses.replace(detections, boxes=boxes)


def rows(detections, index):
    return Detections3D(detections.boxes[index], detections.scores[index], detections.labels[index])


def test_equal_lists_match_in_any_order_of_the_reference():
    candidate = make()
    row = match_detections('f', rows(candidate, np.random.default_rng(1).permutation(12)), candidate)
    assert row.passed and row.matched == row.reference == 12 and row.worst_distance == 0.0
    assert task_module('bbox3d').match_detections is match_detections


def test_results_that_are_not_in_the_order_of_their_scores_fail():
    reference = make()
    row = match_detections('f', reference, rows(reference, [0, 2, 1, *range(3, 12)]))
    assert not row.passed and row.matched == 12 and 'not in descending order of their scores' in row.reason


def test_differences_within_the_bars_pass_and_are_told():
    reference = make()
    candidate = changed(changed(reference, 3, 0, 0.006), 5, 6, 2 * np.pi)
    row = match_detections('f', reference, candidate)
    assert row.passed and row.worst_distance == pytest.approx(0.006, abs=1e-5)


@pytest.mark.parametrize(
    ('column', 'by'), [(0, 0.02), (2, 0.02), (3, 0.03), (5, 0.03), (6, 0.05), (6, np.pi), (7, 0.1), (8, 0.1)]
)
def test_every_value_of_a_box_counts(column, by):
    reference = make()
    row = match_detections('f', reference, changed(reference, 4, column, by))
    assert not row.passed and row.matched == 11 and row.outside == 1 and row.missing == row.extra == 0
    assert row.reason.startswith('1 pair outside the bars (worst: distance')


def faint(count=12):
    """Return boxes of which every second score is below the threshold of level 3."""
    found = make(count)
    found = dataclasses.replace(found, scores=np.where(np.arange(count) % 2, 0.05, found.scores))
    return rows(found, np.argsort(-found.scores, kind='stable'))


@pytest.mark.parametrize('column', [0, 6, 7])
def test_results_below_the_threshold_are_matched_by_the_same_bars_and_counted(column):
    reference = faint()
    row = match_detections('f', reference, reference)
    assert row.passed and (row.matched, row.low, row.low_alone) == (6, 12, 0)
    row = match_detections('f', reference, changed(reference, reference.scores < 0.1, column, np.pi))
    assert row.passed and (row.matched, row.low, row.low_alone) == (6, 12, 12)
    row = match_detections('f', reference, rows(reference, reference.scores >= 0.1))
    assert row.passed and (row.matched, row.low, row.low_alone) == (6, 6, 6)


@pytest.mark.parametrize(
    ('column', 'by', 'passes'),
    [(0, 0.4, True), (0, 0.6, False), (6, 0.2, True), (6, 0.25, False), (3, 0.9, True), (4, 1.2, False),
     (7, 0.4, True), (8, 0.6, False)],
)  # fmt: skip
def test_below_float32_places_corners_and_velocities_count(column, by, passes):
    boxes = np.float32([[5, 6, -1, 4, 2, 1.5, 0.5, 1, 2]])  # a corner is 2.24 m from the middle
    reference = Detections3D(boxes, np.float32([0.5]), np.zeros(1, np.int64))
    bars = match_bars('bbox3d', bars_of('bf16'))
    assert match_detections('f', reference, changed(reference, 0, column, by), **bars).passed == passes


def test_a_box_elsewhere_is_missing_and_extra():
    reference = make()
    row = match_detections('f', reference, changed(reference, 4, 0, 5.0))
    assert (row.missing, row.extra, row.outside) == (1, 1, 0) and row.reason == '1 missing, 1 extra'


def test_another_class_or_score_is_no_match():
    reference = make()
    labels = reference.labels.copy()
    labels[0] = (labels[0] + 1) % 10
    row = match_detections('f', reference, dataclasses.replace(reference, labels=labels))
    assert (row.missing, row.extra) == (1, 1)
    scores = reference.scores.copy()
    scores[2] += 0.002
    row = match_detections('f', reference, dataclasses.replace(reference, scores=scores))
    assert row.outside == 1 and row.worst_score == 0.0 and '0.002' in row.reason


def test_one_box_cannot_be_two():
    reference = make(2)
    twice = rows(reference, [0, 0])
    row = match_detections('f', twice, rows(reference, [0]))
    assert (row.matched, row.missing) == (1, 1)
    assert match_detections('f', twice, twice).passed


def test_the_threshold_counts_and_a_score_at_it_is_no_alarm():
    reference = make()
    scores = np.full(12, 0.05, np.float32)
    scores[:2] = 0.5, 0.1
    reference = dataclasses.replace(reference, scores=scores)
    row = match_detections('f', reference, rows(reference, [0, 1]))
    assert row.passed and row.reference == 2
    scores = scores.copy()
    scores[1] = 0.0995
    assert match_detections('f', reference, dataclasses.replace(reference, scores=scores)).passed


@pytest.mark.parametrize('kind', ['nan', 'shape', 'labels'])
def test_what_is_no_list_of_detections_fails(kind):
    reference = make()
    if kind == 'nan':
        bad = changed(reference, 0, 8, np.nan)
    elif kind == 'shape':
        bad = dataclasses.replace(reference, boxes=reference.boxes[:, :7])
    else:
        bad = dataclasses.replace(reference, labels=reference.labels[1:])
    row = match_detections('f', reference, bad)
    assert not row.passed and row.matched == 0 and row.reason.startswith('candidate: ')


@pytest.mark.parametrize('counts', [(0, 0), (0, 3), (3, 0)])
def test_empty_lists(counts):
    one, two = make(counts[0]), make(counts[1])
    row = match_detections('f', one, two)
    assert row.passed == (counts == (0, 0)) and (row.missing, row.extra) == counts


def test_matching_is_of_maximum_size():
    allowed = np.array([[True, True], [True, False]])
    nearness = np.array([[2.0, 1.0], [1.0, 0.0]])
    assert maximum_matching(allowed, nearness, np.array([0.9, 0.8])) == {0: 1, 1: 0}
