"""A proof needs a least number of matched results, in several inputs; the bars of float16 and INT8."""

import numpy as np
import pytest

from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.spec.comparison import compare_named
from mmdeploy_ext.spec.matching import MIN_INPUTS, MIN_MATCHED, matched_rows, too_few, total_reasons
from mmdeploy_ext.spec.results import Case, DetectionRow, bars_of, widened
from mmdeploy_ext.spec.tensors import ColumnGroup


def case(matched, name='other image', passed=True, low=0, alone=0):
    row = DetectionRow('a', matched, matched, 0, 0, 1.0, 0.0, passed, low=low, low_alone=alone)
    return Case(name, '1x3x8x8', False, (), (row,))


@pytest.mark.parametrize(
    ('matched', 'enough'),
    [
        ([8, 1, 1], True),
        ([10, 0, 0], False),
        ([100, 100, 0, 0], False),
        ([10], True),
        ([], False),
    ],
)
def test_ten_in_three_inputs_are_enough_or_in_all_where_there_are_fewer(matched, enough):
    assert (MIN_MATCHED, MIN_INPUTS) == (10, 3)
    assert (too_few(matched, 'frame', 'more') == []) == enough


def test_one_matched_result_in_a_proof_with_images_is_no_proof():
    (reason,) = total_reasons([case(1), case(0), case(0)])
    assert reason.startswith('only 1 results were matched, in 1 of 3 inputs') and '--images' in reason
    assert total_reasons([case(4), case(4), case(4)]) == []


def test_low_results_without_partner_add_up_over_the_proof():
    cases = [case(20, low=100, alone=1)] * 3
    assert 'results below the score threshold' in total_reasons(cases)[0]
    assert total_reasons(cases, bars_of('fp16')) == []


VALUES = np.float32([[3, -4, 12], [84, 0.5, -1]])


def judged(reference, candidate, precision):
    rows = compare_named(dict(y=np.asarray(reference)), dict(y=np.asarray(candidate)), 1.0)
    (row,) = bars_of(precision).judge(rows)
    return row


@pytest.mark.parametrize('values', [VALUES, VALUES[:1, :1], VALUES - 1000, VALUES * np.float32(1e-30)])
@pytest.mark.parametrize(('precision', 'inside', 'outside'), [('fp16', 0.044, 0.046), ('int8', 0.19, 0.21)])
def test_a_constant_factor_is_beyond_the_bars_though_no_cosine_changes(values, precision, inside, outside):
    for sign in (1, -1):
        assert judged(values, values * np.float32(1 + sign * inside), precision).passed
        row = judged(values, values * np.float32(1 + sign * outside), precision)
        assert not row.passed and "times the reference's" in row.reason and row.cosine > 0.999999
    assert 'norm 2 times' in judged(values, values * 2, precision).reason
    assert 'cosine' in judged(values, -values, precision).reason


def test_bars_follow_from_the_precision():
    half, int8, group = bars_of('fp16'), bars_of('int8'), ColumnGroup(rtol=1e-4, atol=0.1)
    assert bars_of('bf16') == half and bars_of('fp32').is_float32
    assert (half.metric, int8.metric) == (1e-3, 1e-2)
    assert widened([group], 'fp32') == (group,)
    assert [(one.rtol, one.atol) for one in widened([group, ColumnGroup()], 'fp16')] == [
        (3e-2, 0.1),
        (3e-2, 3e-2),
    ]
    boxes, scores = np.float32([[0, 1, 90, 50], [70, 9, 80, 40]]), np.float32([0.9, 0.2])
    one, other = (Detections(boxes[rows], scores[rows], np.zeros(2)) for rows in ([0, 1], [1, 0]))
    assert all(row.passed for row in matched_rows(one, other, {0: 1, 1: 0}, half))
