"""What a `full` graph promises besides its results: descending scores, padding that is told, right counts."""

import numpy as np
import pytest

from mmdeploy_ext.runtime.detections import count_bounds
from mmdeploy_ext.spec.comparison import count_rows, order_rows, shape_rows
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

SCORES = np.array([[0.9, 0.5, 0.5, 0.2], [0.8, 0.3, 0.0, 0.0]], np.float32)
LABELS = np.array([[1, 0, 2, 1], [2, 2, -1, -1]])


def rows_of(scores=SCORES, labels=LABELS):
    dets = [  # upright boxes, and rotated ones
        np.concatenate([np.ones((*scores.shape, columns), np.float32), scores[..., None]], axis=2)
        for columns in (4, 5)
    ]
    outputs = [dict(dets=dets[0]), dict(dets=dets[1]), dict(scores=scores)]
    several = [order_rows(dict(one, labels=labels), 3) for one in outputs]
    assert [row.reason for row in several[0]] == [row.reason for row in several[1]]
    assert [row.reason for row in several[1]] == [row.reason for row in several[2]]
    return several[2]


def test_the_spec_says_which_output_descends_and_outputs_of_other_names_are_not_asked_for():
    plates = np.stack([SCORES, np.ones_like(SCORES)], 2)
    outputs = dict(plates=plates[:, ::-1], labels=LABELS)
    assert order_rows(outputs, 3) == []
    spec = GraphSpec('x', (), (TensorSpec('plates', 'float32', ('B', 4, 2), score_column=0),))
    (row,) = order_rows(dict(plates=plates[:, ::-1], labels=LABELS[:, ::-1]), 3, spec.score_columns())
    assert row.tensor == 'plates' and not row.passed


def test_what_keeps_the_contract_has_no_row():
    assert rows_of() == []
    assert rows_of(SCORES[:, :0], LABELS[:, :0]) == []


@pytest.mark.parametrize(
    ('scores', 'labels', 'reason'),
    [
        (SCORES[:, ::-1], LABELS[:, ::-1], 'scores do not descend: image 0, row 1'),
        (SCORES, np.maximum(LABELS, 0), 'padding without label -1: image 1, row 2: 0'),
        (SCORES, np.where(LABELS == 1, 3, LABELS), 'a label outside of 0..2: image 0, row 0: 3'),
        (SCORES, np.where(LABELS == 0, -1, LABELS), 'a label outside of 0..2: image 0, row 1: -1'),
        (SCORES, LABELS[:, :3], 'shape: got (2, 3), expected (2, 4)'),
        (SCORES[1:] - [0, 0, 0, 0.1], np.array([[2, 2, -1, 0]]), 'score behind padding: image 0, row 3'),
        (np.where(SCORES == 0.3, np.nan, SCORES), LABELS, 'a score is nan: image 1, row 1'),
    ],
)
def test_a_broken_promise_is_a_failing_row(scores, labels, reason):
    (row,) = rows_of(scores, labels)
    assert not row.passed and reason in row.reason


def test_the_number_of_candidates_is_that_of_the_reference_but_for_scores_at_the_threshold():
    bounds = count_bounds(np.array([[[0.3, 0.1], [0.05, 0.2]], [[0.0, 0.0], [0.0, 0.09999]]]), 0.1, 1e-4)
    assert [side.tolist() for side in bounds] == [[2, 0], [3, 1]]
    for right in ([2, 0], [3, 1], [2, 1]):
        assert count_rows(dict(candidates=np.array(right)), dict(candidates=bounds)) == []
    for wrong in ([0, 0], [4, 0], [2, 2], [2]):
        (row,) = count_rows(dict(candidates=np.array(wrong)), dict(candidates=bounds))
        assert not row.passed and row.reason == f'got {wrong}, expected 2 to 3, 0 to 1'
    (row,) = count_rows({}, dict(candidates=bounds))
    assert not row.passed and row.reason == 'is not an output of the graph'


@pytest.mark.parametrize(
    ('shape', 'axes', 'failing'),
    [
        ((2, 40, 5), ('B', 40, 5), False),
        ((2, 39, 5), ('B', 40, 5), True),
        ((2, 40, 5), ('B', 'n', 5), False),
        ((40, 5), ('B', 40, 5), True),
        ((2, 40), ('B', 'n', 5), True),
    ],
)
def test_results_have_the_shape_of_the_contract(shape, axes, failing):
    outputs = dict(dets=np.zeros(shape, np.float32), scores=np.zeros((2, 3)))
    others = TensorSpec('scores', 'float32', ('B', 5)), TensorSpec('labels', 'int64', ('B', 5))
    dets = TensorSpec('dets', 'float32', axes, compare='detections')
    rows = shape_rows(outputs, GraphSpec('full', (), (dets, *others)))
    assert [row.tensor for row in rows] == ['dets'] * failing
