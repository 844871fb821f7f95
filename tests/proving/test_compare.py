"""The tensor comparison itself: each way of being wrong fails, for every output on its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.proving import metrics as dataset
from mmdeploy_ext.spec.comparison import (
    DRAWS,
    compare_named,
    compare_tensors,
    equality_claim,
    is_equal,
    is_exact,
    same_bits,
)
from mmdeploy_ext.spec.matching import with_choices_of
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

SPEC = GraphSpec(
    'toy/raw',
    (),
    (
        TensorSpec('logits', 'float32', ('B', 6), unit='logit'),
        TensorSpec(
            'boxes',
            'float32',
            ('B', 4),
            groups=(
                ColumnGroup('centre', (0, 1), 'm', atol=1e-3),
                ColumnGroup('size', (2, 3), 'm', rtol=1e-3),
            ),
        ),
        TensorSpec('dets', 'float32', ('B', 'n', 5), compare='detections'),
    ),
)


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return dict(
        logits=rng.normal(size=(8, 6)).astype(np.float32),
        boxes=(rng.normal(size=(8, 4)) * [50, 50, 2, 2]).astype(np.float32),
    )


def failing(reference, candidate, spec=SPEC) -> dict[str, str]:
    return {row.tensor: row.reason for row in compare_tensors(reference, candidate, spec) if not row.passed}


def with_one(place, value):
    def change(array):
        array = array.copy()
        array.flat[place] = value(array)
        return array

    return change


CHANGES = {
    'perturbed': lambda array: array * np.float32(1.05),
    'one value perturbed': with_one(5, lambda array: array.flat[5] + 0.01 * np.abs(array).max()),
    'permuted': lambda array: array[::-1],
    'all zero': np.zeros_like,
    'constant': lambda array: np.full_like(array, array.mean()),
    'sign flipped': np.negative,
    'NaN': with_one(3, lambda _: np.nan),
    'infinite': with_one(-1, lambda _: np.inf),
    'empty': lambda array: array[:0],
    'another shape': lambda array: array[:-1],
    'another rank': lambda array: array[None],
    'another dtype': lambda array: array.astype(np.float64),
}


@pytest.mark.parametrize('name', ['logits', 'boxes'])
@pytest.mark.parametrize('change', CHANGES)
def test_each_fault_fails_on_the_output_that_has_it_and_only_there(name, change):
    reference, candidate = tensors(), tensors()
    candidate[name] = CHANGES[change](candidate[name])
    found = failing(reference, candidate)
    assert found and all(tensor.startswith(name) for tensor in found), found
    assert all(found.values()), 'a failing row has a reason'


def test_equal_tensors_pass_with_one_row_per_column_group():
    rows = compare_tensors(tensors(), tensors(), SPEC)
    assert [row.tensor for row in rows] == ['logits', 'boxes [centre]', 'boxes [size]']
    assert all(row.passed and row.max_abs == 0 and row.cosine == pytest.approx(1) for row in rows)


@pytest.mark.parametrize('side', ['reference', 'candidate', 'both'])
def test_a_missing_output_fails(side):
    reference, candidate = tensors(), tensors()
    for name, found in (('reference', reference), ('candidate', candidate)):
        if side in (name, 'both'):
            del found['boxes']
    assert list(failing(reference, candidate)) == ['boxes']


def test_a_small_group_is_not_hidden_behind_a_large_one():
    reference, candidate = tensors(), tensors()
    candidate['boxes'][0, 2] += 4e-3 * np.abs(reference['boxes'][:, 2:]).max()
    assert np.abs(candidate['boxes'] - reference['boxes']).max() < 1e-3 * np.abs(reference['boxes']).max()
    assert list(failing(reference, candidate)) == ['boxes [size]']


ONE = GraphSpec('toy', (), (TensorSpec('memory', 'float32', ('B', 3), groups=(ColumnGroup(atol=1e-3),)),))


def memory(*values) -> dict[str, np.ndarray]:
    return dict(memory=np.array([values], np.float32))


def test_zeros_equal_zeros_and_what_atol_allows():
    assert failing(memory(0, 0, 0), memory(0, 0, 0), ONE) == {}
    assert failing(memory(0, 0, 0), memory(0, 9e-4, 0), ONE) == {}
    assert set(failing(memory(0, 0, 0), memory(0, 2e-3, 0), ONE)) == {'memory'}
    zeros, logits = dict(logits=np.zeros((1, 6), np.float32)), GraphSpec('toy', (), SPEC.outputs[:1])
    assert failing(zeros, zeros, logits) == {}
    for value, wrong in ((9e-7, set()), (1.1e-6, {'logits'})):
        other = dict(logits=np.full((1, 6), value, np.float32))
        assert set(failing(zeros, other, logits)) == wrong


def test_the_larger_tolerance_decides_not_the_sum_of_both():
    group = ColumnGroup(rtol=1e-3, atol=1e-3)
    spec = GraphSpec('toy', (), (TensorSpec('memory', 'float32', ('B', 3), groups=(group,)),))
    assert failing(memory(0, 1, 0), memory(0, 1.0009, 0), spec) == {}
    assert set(failing(memory(0, 1, 0), memory(0, 1.0015, 0), spec)) == {'memory'}


def test_a_dead_output_fails_though_atol_would_cover_it():
    assert 'all zero' in failing(memory(5e-4, 0, 2e-4), memory(0, 0, 0), ONE)['memory']


def test_integers_and_booleans_and_scalars_compare():
    spec = GraphSpec('toy', (), (TensorSpec('count', 'int64', ()), TensorSpec('mask', 'bool', (3,))))
    reference = dict(count=np.array(3), mask=np.array([True, False, True]))
    assert failing(reference, reference, spec) == {}
    other = dict(count=np.array(4), mask=~reference['mask'])
    assert set(failing(reference, other, spec)) == {'count', 'mask'}
    wide = GraphSpec('toy', (), (TensorSpec('count', 'int64', (), groups=(ColumnGroup(atol=1.5),)),))
    for value, expected in ((4, set()), (5, {'count'})):
        assert set(failing(dict(count=np.array(3)), dict(count=np.array(value)), wide)) == expected


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(2.125, 20, width=32)),
    st.floats(0.01, 10),
    st.data(),
)
def test_a_value_passes_exactly_within_the_tolerance_of_its_column_and_its_channel(reference, times, data):
    spec = GraphSpec('toy', (), (TensorSpec('x', 'float64', reference.shape),))
    if abs(times - 1) < 1e-3:
        return
    expected = reference.astype(np.float64)
    got, place = expected.copy(), data.draw(st.integers(0, expected.size - 1))
    index = np.unravel_index(place, expected.shape)
    axes = {expected.ndim - 1, 1} if expected.ndim > 2 else {expected.ndim - 1}
    axes = [axis for axis in axes if expected.ndim > 1 and expected.shape[axis] > 1]
    slices = [np.take(expected, index[axis], axis) for axis in axes] or [expected]
    got.flat[place] += times * 1e-4 * min(part.max() for part in slices)
    (row,) = compare_tensors(dict(x=expected), dict(x=got), spec)
    assert row.passed == (times < 1)
    assert row.max_rel == pytest.approx(times * 1e-4, rel=1e-3)


ROWS = np.float32([[500, 300, 0.5, -1e9], [400, 200, 0.25, -1e9], [40, 20, 0.125, -1e9]])


@pytest.mark.parametrize(
    ('place', 'change', 'rtol', 'passed'),
    [
        ((0, 2), 4e-5, 1e-4, True),
        ((0, 2), 6e-5, 1e-4, False),  # the score's own column
        ((0, 0), 0.04, 1e-4, True),
        ((0, 3), 1e6, 1e-4, False),  # another sentinel is no sentinel
        ((0, 3), np.inf, 1e-4, False),
        ((0, 2), 1.0, 1e-2, True),  # float16: a tolerance of the whole tensor
    ],
)
def test_each_column_has_its_own_scale(place, change, rtol, passed):
    candidate = ROWS.copy()
    candidate[place] += change
    spec = GraphSpec('toy', (), (TensorSpec('x', 'float32', (3, 4), groups=(ColumnGroup(rtol=rtol),)),))
    sides = dict(x=ROWS), dict(x=candidate)
    assert [row.passed for row in compare_tensors(*sides, spec, lambda _: dict(x=0 * ROWS))] == [passed]


@pytest.mark.parametrize('large', [2e5, -1e4, -3.4e38, -np.inf, np.nan])
def test_values_of_another_magnitude_do_not_widen_the_tolerance(large):
    reference = np.float32([large, 1, 2, 3, 0.01])
    other, rounded = (reference + np.float32([0, 0, 0, value, 0]) for value in (5e-4, 2e-4))
    rows = [compare_named(dict(x=reference), dict(x=side), 1e-4)[0] for side in (reference, rounded, other)]
    assert [row.passed for row in rows] == [True, True, False]
    assert all(row.cosine == pytest.approx(1) for row in rows)


def boxes_and_scores(classes, boxes=100):
    """(boxes, 4 + classes): pixels, then scores."""
    random = np.random.default_rng(5)
    return np.concatenate([random.uniform(0, 640, (boxes, 4)), random.uniform(0, 1, (boxes, classes))], 1)


LAYOUTS = {
    'more than 128 columns': lambda: boxes_and_scores(365),
    'columns first': lambda: boxes_and_scores(80, 8400).T,
    'anchors before columns': lambda: (
        boxes_and_scores(80, 3 * 20).reshape(1, 3, 4, 5, 84).transpose(0, 1, 4, 2, 3)
    ),
    'more than 128 channels': lambda: boxes_and_scores(252, 25).T.reshape(1, 256, 5, 5),
    'rows': lambda: boxes_and_scores(80).T.reshape(2, 42, 100),
    'flat, maps': lambda: boxes_and_scores(80).T.ravel(),
    'flat, tables': lambda: boxes_and_scores(80).ravel(),
    'flat, with a batch axis': lambda: boxes_and_scores(80).reshape(1, -1),
    'flat, boxes before scores': lambda: np.concatenate([np.full(40, 640.0), np.full(10, 0.5)]),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_scores_are_compared_by_their_own_scale_wherever_they_lie_beside_pixels(layout):
    reference = LAYOUTS[layout]().astype(np.float32)
    scores = reference.ravel() <= 1
    wrong = np.where(scores.reshape(reference.shape), reference * np.float32(1.01), reference)
    (row,) = compare_named(dict(out=reference), dict(out=wrong), 1e-4)
    assert not row.passed
    rounded = reference * np.float32(1 + 2e-5)
    assert is_equal(compare_named(dict(out=reference), dict(out=rounded), 1e-4))


def test_values_of_one_scale_have_the_tolerance_of_the_largest():
    reference = np.random.default_rng(6).normal(size=(4, 300, 1000)).astype(np.float32)
    candidate = reference + np.float32(5e-5 * np.abs(reference).max())
    for shape in ((4, 300, 1000), (1200, 1000), (300, 4000), (1, 1_200_000), (300_000, 4)):
        assert is_equal(
            compare_named(dict(out=reference.reshape(shape)), dict(out=candidate.reshape(shape)), 1e-4)
        ), shape


def test_a_value_that_is_small_by_chance_has_the_rounding_of_the_values_beside_it():
    reference = np.float32([4, 0.02, 5, 3, 6])
    candidate = reference + np.float32([0, 4e-6, 0, 0, 0])

    def judged(usual):
        distances = np.array([usual, 1e-7, usual, usual, usual])  # of one value, by luck
        return compare_named(dict(x=reference), dict(x=candidate), 1e-4, '', lambda _: dict(x=distances))[
            0
        ].passed

    assert judged(2e-6) and not judged(1e-7)


def test_what_float32_is_from_float64_is_allowed_three_times_and_asked_for_only_on_failure():
    reference, asked = np.float32([[100, 0.001], [90, 0.002]]), []

    def rounding(distance):
        return lambda draws: asked.append(draws) or dict(x=np.full(reference.shape, distance))

    def judged(change, distance):
        candidate = dict(x=reference + np.float32([0, change]))
        return compare_named(dict(x=reference), candidate, 1e-4, '', rounding(distance))[0].passed

    assert judged(5e-7, 1e-5) and not asked
    assert judged(2e-5, 1e-5) and not judged(4e-5, 1e-5)
    assert asked == [0, *range(DRAWS + 1)]
    assert not judged(0.02, 1), 'at most 1e-4 of the largest value, or 1e-3 of the own one'
    integers = dict(x=np.arange(3)), dict(x=np.arange(3)[::-1])
    assert not compare_named(*integers, 1e-4, '', rounding(1))[0].passed
    assert len(asked) == 1 + DRAWS + 1, 'not where no rounding would be enough'
    unknown = dict(x=reference + np.float32([0, 9e-5])), dict(x=reference + np.float32([0, 2e-4]))
    rows = [compare_named(dict(x=reference), side, 1e-4, '', lambda _: {})[0] for side in unknown]
    assert [row.passed for row in rows] == [True, False], '1e-6 of the largest value'


@pytest.mark.parametrize('value', [-1.0, float('nan')])
def test_metrics_of_a_data_set_without_objects_are_no_proof(value, tmp_path, capsys):
    none, some = dict(mAP=value, mAP_s=value), dict(mAP=0.5, mAP_s=value)
    assert [row.passed for row in dataset.proof_rows(none, none, 0.0005)] == [True, True, False]
    assert all(row.passed for row in dataset.proof_rows(some, some, 0.0005))
    facts = dict.fromkeys(dataset.SAME, '1') | dict(config='c', processes=1)
    for metrics, passed in ((none, False), (some, True)):
        for kind in ('TorchBackend', 'OnnxRuntimeBackend'):
            kept = dataset.keep_metrics(tmp_path, kind, metrics, facts, 'fp32')
        is_vacuous = 'NOT PROVEN: nothing was compared, every metric is NaN' in capsys.readouterr().out
        assert kept == passed == (not is_vacuous)


@pytest.mark.parametrize('fact', ['code_sha256', 'dataset_sha256', 'input_size', 'evaluation'])
def test_metrics_of_another_model_data_set_input_or_evaluation_are_not_compared(fact, tmp_path, capsys):
    facts = dict.fromkeys(dataset.SAME, '1') | dict(config='c', processes=1)
    dataset.keep_metrics(tmp_path, 'TorchBackend', dict(mAP=0.5), facts | {fact: '2'}, 'fp32')
    assert dataset.keep_metrics(tmp_path, 'OnnxRuntimeBackend', dict(mAP=0.3), facts, 'fp32')
    assert 'not compared' in capsys.readouterr().out


def distance(array, reference, dtype=np.float32) -> ArrayDistance:
    return ArrayDistance(np.array(array, dtype), np.array(reference, dtype))


def test_the_distance_of_arrays_is_relative_to_the_largest_reference_value():
    off = distance([[1, -2, 4.5]], [[1, -2, 4]])
    assert (off.max_abs, off.scale, off.max_rel) == (0.5, 4, 0.125)
    assert off.differences.tolist() == [0, 0, 0.5] and 0.99 < off.cosine < 1
    zero = distance([0, 0], [0, 0])
    assert (zero.max_abs, zero.max_rel, zero.cosine, zero.norm_ratio) == (0, 0, 1, 1)
    nothing = distance([1e-9, 0], [0, 0])
    assert nothing.max_rel == nothing.norm_ratio == np.inf and nothing.cosine == 0
    assert distance([6, 8], [3, 4]).norm_ratio == 2
    assert distance([], []).max_rel == 0


def test_equal_bits_are_of_one_type_and_shape():
    zeros = np.zeros((2, 3), np.float32)
    same = [
        same_bits(dict(a=zeros), dict(a=other)) for other in (zeros.copy(), zeros.T, zeros.view(np.int32))
    ]
    assert same == [True, False, False]


def test_outputs_without_a_spec_are_compared_by_name():
    outputs = dict(
        scores=np.array([1.0, 2.0], np.float32),
        indices=np.array([100_000, 7]),
        names=np.array(['car', 'bus'], np.object_),
        parts=[np.ones(2, np.float32), np.ones(3, np.float32)],
    )
    rows = compare_named(outputs, outputs, 1e-4)
    assert [row.tensor for row in rows] == ['scores', 'indices', 'names', 'parts[0]', 'parts[1]']
    assert is_exact(rows) and equality_claim(rows, 2) == 'EQUAL ON 2 INPUTS'
    rounded = compare_named(outputs, {**outputs, 'scores': outputs['scores'] + np.float32(1e-4)}, 1e-4)
    assert is_equal(rounded) and not is_exact(rounded)
    for name, value in (
        ('scores', outputs['scores'] * 1.1),
        ('indices', np.array([99_999, 7])),
        ('names', np.array(['car', 'van'], np.object_)),
        ('parts', outputs['parts'][:1]),
    ):
        other = compare_named(outputs, {**outputs, name: value}, 1e-4)
        assert equality_claim(other, 2) == 'NOT EQUAL', name


def test_metrics_near_zero_are_noted():
    for value, count in ((0.003, 1), (0.3, 0)):
        values = dict(bbox_mAP=value, bbox_mAP_s=-1.0)
        assert len(dataset.near_zero_notes(dataset.proof_rows(values, values, 0.0005))) == count
    assert dataset.near_zero_notes([]) == []


@pytest.mark.parametrize(
    ('places', 'excused'), [([5, 3, 2, 7], True), ([5, 3, 2, 2], False), ([5, 3, 3, 2], False)]
)
def test_choices_among_equal_scores_at_the_end_of_a_list_are_distinct(places, excused):
    reference = dict(scores=np.float32([3, 2, 1, 1]), places=np.array([5, 3, 0, 1]))
    _, others = with_choices_of(reference, dict(reference, places=np.array(places)), ['scores'])
    assert ('places' in others) is excused
