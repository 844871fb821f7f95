"""A proof needs a least number of matched results, in several inputs; in float16 an engine that rounds."""

import pytest

from mmdeploy_ext.proving.half_bars import CPU, proof_engine
from mmdeploy_ext.proving.results import Case, DetectionRow
from mmdeploy_ext.proving.totals import MIN_INPUTS, MIN_MATCHED, SECOND_RUN, too_few, total_reasons


def case(matched, name='other image', passed=True, low=0, alone=0):
    row = DetectionRow('a', matched, matched, 0, 0, 1.0, 0.0, passed, low=low, low_alone=alone)
    return Case(name, '1x3x8x8', False, (), (row,))


@pytest.mark.parametrize(
    ('matched', 'enough'),
    [
        ([8, 1, 1], True),
        ([8, 1, 0], False),
        ([10, 0, 0], False),
        ([100, 100, 0, 0], False),
        ([100, 100, 1, 0], True),
        ([1], False),
        ([10], True),
        ([9, 1], True),
        ([], False),
    ],
)
def test_ten_in_three_inputs_are_enough_or_in_all_where_there_are_fewer(matched, enough):
    assert (MIN_MATCHED, MIN_INPUTS) == (10, 3)
    assert (too_few(matched, 'frame', 'more') == []) == enough


def test_the_reason_says_what_there_was_what_is_wanted_and_what_to_do():
    assert too_few([1, 0, 0, 0], 'frame', 'use a longer drive') == [
        'only 1 results were matched, in 1 of 4 frames; a proof wants 10 or more, in 3 or more: use a longer '
        'drive'
    ]


def test_one_matched_result_in_a_proof_with_images_is_no_proof():
    (reason,) = total_reasons([case(1), case(0), case(0)])
    assert reason.startswith('only 1 results were matched, in 1 of 3 inputs') and '--images' in reason
    assert total_reasons([case(4), case(4), case(4)]) == []


def test_a_second_run_is_no_other_input():
    runs = [case(20), case(20, 'other image' + SECOND_RUN), case(20, 'dark'), case(20, 'dark' + SECOND_RUN)]
    assert total_reasons(runs) == []
    few = [case(20), case(20, 'other image' + SECOND_RUN), case(0, 'dark'), case(0, 'bright')]
    assert 'in 1 of 3 inputs' in total_reasons(few)[0]


def test_nothing_compared_and_nothing_found_are_said_as_such():
    assert total_reasons([]) == ['nothing was compared']
    assert total_reasons([case(0), case(0)])[0].startswith('nothing was found in any image')


def test_failed_cases_say_more_than_that_little_was_matched():
    assert total_reasons([case(1, passed=False), case(0)]) == []


def test_low_results_without_partner_add_up_over_the_proof():
    cases = [case(20, low=100, alone=1)] * 3
    assert 'results below the score threshold' in total_reasons(cases)[0]
    assert total_reasons(cases, 'fp16') == []


@pytest.mark.parametrize('providers', [None, CPU, [CPU], (CPU,)], ids=['default', 'name', 'list', 'tuple'])
def test_float16_is_rounded_on_the_cpu_however_it_is_named(providers):
    engine = {} if providers is None else dict(providers=providers)
    assert proof_engine('OnnxRuntimeBackend', engine) == dict(engine, round_fp16=True)
    on_gpu = dict(providers=['CUDAExecutionProvider', CPU])
    assert proof_engine('OnnxRuntimeBackend', on_gpu) == on_gpu
