"""Occupancies: a voxel is right if its class is; beside a tie of PyTorch's scores it may differ, counted."""

import numpy as np
import pytest

from mmdeploy_ext.proving.views.report import picture_uri
from mmdeploy_ext.runtime.occupancy import Instances, Occupancy, from_above
from mmdeploy_ext.runtime.tasks import task_module
from mmdeploy_ext.spec.results import Pair

TASK, FREE = task_module('occupancy'), 3


def grid(leads=0.5):
    labels = np.full((4, 6, 2), FREE, np.uint8)
    labels[:2, :3, 0], labels[3, 5, 1] = 1, 2
    return Occupancy(labels, np.full(labels.shape, leads, np.float32), FREE)


def changed(*changes):
    labels = grid().labels.copy()
    for place, label in changes:
        labels[place] = label
    return Occupancy(labels, None, FREE)


def test_equal_grids_match_whole():
    row = TASK.match_detections('a', grid(), changed())
    assert row.passed and (row.reference, row.matched, row.worst_iou) == (7, 7, 1.0)


def test_each_wrong_voxel_is_counted_by_what_it_is():
    other = changed(((0, 0, 0), FREE), ((1, 1, 1), 0), ((3, 5, 1), 1))
    row = TASK.match_detections('a', grid(), other)
    assert not row.passed and (row.missing, row.extra, row.outside, row.matched) == (1, 1, 1, 5)
    assert TASK.class_ious(grid(), other) == pytest.approx({0: 0.0, 1: 5 / 7, 2: 0.0, 3: 40 / 42})
    assert row.worst_iou == 0.0


@pytest.mark.parametrize(('lead', 'passed'), [(9e-5, True), (1.1e-4, False)])
def test_a_voxel_beside_a_tie_may_differ_and_is_counted(lead, passed):
    row = TASK.match_detections('a', grid(lead), changed(((0, 0, 0), 2)))
    assert row.passed is passed and bool(row.excused) is passed
    assert row.matched == 6 + passed


def test_grids_of_another_shape_are_not_compared():
    row = TASK.match_detections('a', grid(), Occupancy(grid().labels[:, :5], None, FREE))
    assert row.broken and not row.passed


def test_wrong_voxels_are_white_in_the_picture_of_both_sides():
    pair = Pair('a', None, grid(), changed(((0, 0, 0), FREE)))
    whites = [int((TASK.draw_pair(TASK.fit_pair(one), 'abcd') == 255).all(-1).sum()) for one in (pair,)]
    same = TASK.draw_pair(Pair('a', None, grid(), changed()), 'abcd')
    assert whites[0] > int((same == 255).all(-1).sum()) + 100


def test_a_report_has_the_picture_of_both_sides():
    pair = Pair('a', None, grid(), changed())
    assert picture_uri(pair, 'abcd', 'occupancy').startswith('data:image/jpeg;base64,')


def test_the_view_from_above_has_the_highest_voxel_that_is_not_free():
    labels = np.full((1, 3, 3), FREE, np.uint8)
    labels[0, 0], labels[0, 1, 0] = [0, 1, FREE], 2
    np.testing.assert_array_equal(from_above(Occupancy(labels, None, FREE)), [[1, 2, FREE]])


def test_json_has_a_count_of_voxels_for_each_class():
    entries = grid().to_json(('a', 'b', 'c', 'free'))
    assert [(entry['name'], entry['voxels']) for entry in entries] == [('b', 6), ('c', 1), ('free', 41)]


def with_instances(rows=(0, 0, 1, -1), cells=(0, 2), scores=(0.9, 0.8), sure=None, spread=0):
    """A row of voxels along x, centres of one class, which rounding may move back by `spread` voxels."""
    cells = np.array([[cell, 0, 0] for cell in cells], np.int32)
    around = cells[:, None] - np.int32([[spread, 0, 0], [0, 0, 0]])
    labels = np.where(np.array(rows) < 0, FREE, 1).astype(np.uint8)[:, None, None]
    occupancy = Occupancy(labels, np.ones(labels.shape, np.float32), FREE)
    rows = np.array(rows, np.int32)[:, None, None]
    scores = np.array(scores, np.float32)
    places, classes = cells.astype(np.float32), np.zeros(len(scores), int)
    sure = None if sure is None else np.array(sure)
    return occupancy.with_instances(Instances(rows, places, scores, classes, sure, around))


@pytest.mark.parametrize(
    ('candidate', 'passed'),
    [
        (dict(), True),
        (dict(rows=(1, 1, 0, -1), cells=(2, 0), scores=(0.8, 0.9)), True),  # the same in another order
        (dict(rows=(0, 1, 1, -1)), True),  # as near to both
        (dict(rows=(1, 0, 1, -1)), False),
        (dict(rows=(0, 0, 0, -1)), False),
        (dict(cells=(0, 3)), False),
        (dict(scores=(0.9, 0.7)), False),
    ],
)
def test_a_voxel_is_right_if_its_nearest_centre_is(candidate, passed):
    row = TASK.match_detections('a', with_instances(), with_instances(**candidate))
    assert row.passed is passed
    assert bool(row.excused) is (candidate.get('rows') == (0, 1, 1, -1))


@pytest.mark.parametrize(('spread', 'passed'), [(1, True), (0, False)])
def test_a_centre_at_the_border_of_its_voxel_may_be_in_either(spread, passed):
    """The second voxel may be 1 from the first centre, and the second centre 1 from it, or 2."""
    reference = with_instances(rows=(0, 0, 1, 1), cells=(0, 3), spread=spread)
    candidate = with_instances(rows=(0, 1, 1, 1), cells=(0, 3))
    assert TASK.match_detections('a', reference, candidate).passed is passed


@pytest.mark.parametrize('sure', [False, True])
def test_a_centre_that_rounding_decides_may_be_missing_or_extra(sure):
    one = with_instances(rows=(0, 0, 0, -1), cells=(0,), scores=(0.9,))
    taken = with_instances(sure=(True, sure))
    row = TASK.match_detections('a', taken, one)
    assert row.passed is not sure and bool(row.excused) is not sure
    not_taken = with_instances(rows=(0, 0, 0, -1), sure=(True, sure))
    assert TASK.match_detections('a', not_taken, one).passed is not sure
    assert TASK.match_detections('a', not_taken, with_instances()).passed is not sure
    assert not TASK.match_detections('a', one, with_instances()).passed, 'PyTorch has no such centre'


def test_ties_excuse_a_tenth_of_the_voxels_at_most():
    labels = np.ones((10, 2, 1), np.uint8)
    reference = Occupancy(labels, np.where(np.arange(20).reshape(labels.shape) < 5, 1e-5, 0.5), FREE)
    for count, passed in ((2, True), (3, False)):
        other = labels.copy()
        other.reshape(-1)[:count] = 2
        row = TASK.match_detections('a', reference, Occupancy(other, None, FREE))
        assert row.passed is passed and row.excused, count
