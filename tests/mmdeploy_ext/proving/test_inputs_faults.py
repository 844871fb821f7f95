"""Files that are wrong only for some inputs: the inputs of a proof set each of them off, without level 1."""

import contextlib
import functools

import numpy as np
import onnx
import pytest

from conditional_faults import (
    FINE,
    SIZES,
    WHERE,
    a_little_off,
    clipped,
    mean_of,
    not_a_number,
    only_where,
    with_logits,
)
from graph_behind import Behind, Right
from marking import in_suite
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.proving.totals import total_reasons
from proofs import run_cases, run_once


def judge(path, inputs):
    """Return the cases of levels 2 and 3."""
    with build_backend('OnnxRuntimeBackend', path, threads=1, graph_optimization='basic') as backend:
        return list(run_cases(inputs, backend))


def judge_once(engine, inputs):
    """Return the same of one run of each input: for files that are wrong whenever they run."""
    return list(run_once(inputs, engine))


def first_failed(engine, inputs):
    """Return the name of the first case that fails, '' where all pass."""
    return next((case.name for case in run_once(inputs, engine) if not case.passed), '')


@pytest.fixture(scope='module')
def faulty(known):
    """Return (family, fault, whether it takes any size) -> what runs a file with the fault."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def right(path):
            engine = build_backend('OnnxRuntimeBackend', path, threads=1, graph_optimization='basic')
            return Right(stack.enter_context(engine))

        def engine(family, change, dynamic=True):
            path = known(family, dynamic)[0]
            return Behind(right(path), path, family, change)

        yield engine


MATRIX = pytest.mark.matrix
FILES = [
    *(pytest.param(family, True, id=f'{family}-dynamic') for family in SIZES if family != 'solov2'),
    pytest.param('solov2', True, id='solov2-dynamic', marks=MATRIX),
    pytest.param('atss', False, id='atss-fixed'),
    *(pytest.param(family, False, id=f'{family}-fixed', marks=MATRIX) for family in ('solov2', 'rtdetr')),
]
"""Family, and whether its file takes any size."""
SOME = 'a batch of 3 or more', 'portraits'
"""The inputs are of the same code whatever the family: of one all conditions, of the others these."""
DARK = dict(atss=-1.0, solov2=-1.0, rtdetr=0.2)
"""Means of the normalised input below which a picture counts as dark."""
BRIGHT = dict(atss=1.5, solov2=1.5, rtdetr=0.8)


def planted(path, folder, change, family):
    model = onnx.load(path)
    change(model.graph, family)
    onnx.checker.check_model(model)
    target = str(folder / 'wrong.onnx')
    onnx.save(model, target)
    return target


@pytest.mark.suite('atss-dynamic', 'atss-fixed')
@pytest.mark.parametrize(('family', 'dynamic'), FILES)
def test_the_right_files_pass_with_far_more_than_the_least_matched(known, family, dynamic):
    path, inputs = known(family, dynamic)
    cases = judge(path, inputs)
    assert all(case.passed for case in cases) and not total_reasons(cases)
    assert len(cases) == len(inputs) >= (8 if dynamic else 5)
    matched = [sum(row.matched for row in case.detections) for case in cases]
    assert min(matched) >= 10, dict(zip([case.name for case in cases], matched, strict=True))


@pytest.mark.suite(
    'atss-a batch of 3 or more', 'atss-a batch of 2', 'atss-H % 32', 'atss-W > 2H', 'atss-W over 640',
    'atss-portraits',
)  # fmt: skip
@pytest.mark.parametrize(
    ('family', 'condition'),
    [
        *(('atss', condition) for condition in (*WHERE, *FINE)),
        *(('rtdetr', condition) for condition in SOME),
        *(pytest.param('solov2', condition, marks=MATRIX) for condition in SOME),
        *(pytest.param('rtdetr', condition, marks=MATRIX) for condition in WHERE if condition not in SOME),
        *(pytest.param('solov2', condition, marks=MATRIX) for condition in ('W over 640', 'H % 64')),
    ],
)
def test_a_file_that_is_wrong_for_some_shapes_only_is_found(known, faulty, family, condition):
    change = only_where({**WHERE, **FINE}[condition], a_little_off)
    assert first_failed(faulty(family, change), known(family)[1]) not in ('', 'traced input')


@pytest.mark.parametrize('family', in_suite(SIZES, 'atss'))
def test_a_fault_behind_the_right_file_gives_what_a_file_with_the_fault_gives(
    known, faulty, tmp_path, family
):
    path, inputs = known(family)
    change = only_where(WHERE['a batch of 3 or more'], a_little_off)
    sizes = [len(one.input.images) for one in inputs]
    wrong_file = planted(path, tmp_path, change, family)
    with build_backend('OnnxRuntimeBackend', wrong_file, threads=1, graph_optimization='basic') as backend:
        for index in (sizes.index(1), sizes.index(3)):
            names = backend.metadata.spec.input_names
            feeds = {name: inputs[index].feeds[name] for name in names if name in inputs[index].feeds}
            wrong, right = backend.infer(feeds), faulty(family, change).infer(feeds)
            assert wrong.keys() == right.keys()
            for name, value in wrong.items():
                np.testing.assert_array_equal(right[name], value)


@pytest.mark.suite('atss-dynamic', 'atss-fixed')
@pytest.mark.parametrize(('family', 'dynamic'), FILES)
def test_nan_on_dark_pictures_is_found(known, faulty, family, dynamic):
    change = only_where(lambda p, x: p.Less(mean_of(p, x), np.float32(DARK[family])), not_a_number)
    cases = judge_once(faulty(family, change, dynamic), known(family, dynamic)[1])
    assert [case.name.split(',')[0] for case in cases if not case.passed] == ['dark']


@pytest.mark.parametrize(('family', 'dynamic'), FILES)
def test_wrong_results_on_bright_pictures_are_found(known, faulty, family, dynamic):
    change = only_where(lambda p, x: p.Greater(mean_of(p, x), np.float32(BRIGHT[family])), a_little_off)
    cases = judge_once(faulty(family, change, dynamic), known(family, dynamic)[1])
    assert [case.name.split(',')[0] for case in cases if not case.passed] == ['bright']


@pytest.mark.parametrize(
    ('family', 'name', 'default', 'dynamic'),
    [
        ('atss', 'img_shape', np.float32(0), True),
        ('atss', 'scale_factor', np.float32(1), True),
        ('atss', 'img_shape', np.float32(0), False),
        pytest.param('solov2', 'ori_shape', np.int64(0), True, marks=MATRIX),
        pytest.param('atss', 'scale_factor', np.float32(1), False, marks=MATRIX),
        pytest.param('solov2', 'img_shape', np.float32(0), True, marks=MATRIX),
        pytest.param('solov2', 'img_shape', np.float32(0), False, marks=MATRIX),
        pytest.param('solov2', 'ori_shape', np.int64(0), False, marks=MATRIX),
    ],
)
def test_a_file_that_is_wrong_when_an_optional_input_is_not_fed_is_found(
    known, faulty, family, name, default, dynamic
):
    def condition(planter, image):
        different = planter.Not(planter.Equal(name, default))
        count = planter.ReduceSum(planter.Cast(different, to=1), keepdims=0)
        return planter.Equal(count, np.float32(0))

    change = only_where(condition, a_little_off)
    cases = judge_once(faulty(family, change, dynamic), known(family, dynamic)[1])
    failed = [case.name for case in cases if not case.passed]
    assert any(f'without {name}' in case or f'and {name}' in case for case in failed), failed


@pytest.mark.parametrize(
    ('family', 'change'),
    [
        pytest.param('atss', clipped(600), id='ATSS, boxes clipped at 600 px'),
        pytest.param('rtdetr', clipped(600), id='RT-DETR, boxes clipped at 600 px', marks=MATRIX),
        pytest.param(
            'atss',
            with_logits(lambda p, x: p.Sub(x, np.float32(20)), 'cls_score_3'),
            id="ATSS, P6's logits silenced",
        ),
    ],
)
def test_a_file_that_is_wrong_in_one_place_only_is_found(known, tmp_path, family, change):
    path, inputs = known(family)
    with build_backend('OnnxRuntimeBackend', planted(path, tmp_path, change, family)) as backend:
        assert first_failed(backend, inputs)


def test_references_are_computed_once_however_many_files_are_judged(known, monkeypatch):
    path, inputs = known('atss')
    judge(path, inputs)
    monkeypatch.setattr(type(inputs[0].deployment.family), 'reference_detections', None)
    assert all(case.passed for case in judge(path, inputs))
