"""The user's test path on a file's own tensors: what is put in, what is excused, and planted faults."""

import contextlib
import dataclasses

import numpy as np
import pytest

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.exporting.substitution import (
    choices_among,
)
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.tasks.bbox2d import ONE_TO_ONE, match_detections
from mmdeploy_ext.tasks.matching import accept_few_alone
from mmdeploy_ext.tasks.results import Case, DetectionRow
from proofs import samples_alone
from toy_atss import PICTURE, export_toy, load_demo
from verdicts import cases_of


def boxes(*rows):
    rows = np.float32(rows)
    return Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64))


FIRST, SECOND = (0, 0, 40, 40), (100, 100, 150, 160)


@pytest.mark.parametrize(
    ('score', 'every', 'passed'),
    [
        (0.5000005, [FIRST, SECOND], True),  # PyTorch has both, and took the other one
        (0.50001, [FIRST, SECOND], False),  # no tie
        (0.5000005, [FIRST], False),  # PyTorch has no such box
    ],
)
def test_a_choice_among_equal_scores_is_listed_and_nothing_else_is_excused(score, every, passed):
    last = (300, 300, 340, 350, 0.2)
    reference, candidate = boxes((*FIRST, 0.5), last), boxes((*SECOND, score), last)
    without_limits = boxes(last, *((*box, 0.5) for box in every))
    tied = choices_among(reference, candidate, lambda: without_limits)
    row = match_detections('a', reference, candidate, tied=tied, **ONE_TO_ONE)
    assert row.passed == passed and len(row.excused) == passed
    assert (row.missing, row.extra) == (not passed, not passed)


def test_a_box_that_moved_is_no_choice_although_its_score_is_the_same():
    reference, candidate = boxes((*FIRST, 0.5)), boxes((0, 0, 40, 40.5, 0.5))
    tied = choices_among(reference, candidate, lambda: reference)
    row = match_detections('a', reference, candidate, tied=tied, **ONE_TO_ONE)
    assert not row.passed and row.outside == 1 and 'nearest class 0' in row.alone[0]


def row_of(reference, missing=0, **fields):
    matched = reference - missing
    return DetectionRow(
        'a', reference, matched, missing, 0, 1.0, 0.0, not missing, alone=('one',) * missing, **fields
    )


@pytest.mark.parametrize(
    ('total', 'missing', 'share', 'substituted', 'accepted'),
    [
        (100, 2, 0.005, (), True),
        (100, 3, 0.005, (), False),
        (2000, 10, 0.005, (), True),
        (2000, 11, 0.005, (), False),
        (2000, 20, 0.01, (row_of(2000),), True),
        (2000, 20, 0.01, (row_of(2000, 1),), False),
        (2000, 20, 0.01, (), False),
    ],
)
def test_few_results_without_a_partner_are_accepted_and_listed(total, missing, share, substituted, accepted):
    rows = dict(detections=(row_of(total, missing),), substituted=substituted)
    cases = [Case('dark', '', False, **rows), Case('bright', '', False)]
    got, lines = accept_few_alone(cases, share)
    assert all(row.passed for case in got for row in case.detections) == accepted
    assert lines == (['dark: one'] * missing if accepted else [])


def test_results_that_cannot_be_compared_and_those_of_the_files_tensors_are_never_accepted():
    broken = dataclasses.replace(row_of(100, 1), broken=True)
    several = dict(detections=(row_of(100, 1, outside=2),)), dict(inner=(row_of(2000, 20),))
    never = dict(detections=(broken, row_of(400, 1))), dict(substituted=(row_of(100, 1),))
    for fields in (*several, *never):
        got, _ = accept_few_alone([Case('dark', '', False, **fields)], 0.01)
        assert not got[0].passed


PICTURES = [('toy.jpg', read_image(PICTURE))]
OPENED = dict(atss=dict(nms_pre=20, score_thr=0.001, max_per_img=1000), retinanet=dict(max_per_img=1000))
"""Toy -> settings with which a limit is reached and no other hides it."""


def proven(deployment, path, fault):
    """Return the verdict on a file that was exported with a fault in its settings, which is not compared."""
    with fault:
        export_toy(deployment, path, height=128, width=160)
    with samples_alone():
        return prove(deployment, str(path), PICTURES, edited=True, timed=False)


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
    deployment = load_demo(name)
    cfg = deployment.model.bbox_head.test_cfg
    with contextlib.ExitStack() as stack:
        for key, value in OPENED.get(name, {}).items():  # on both sides
            stack.enter_context(replaced_entry(cfg, key, value))
        fault = contextlib.ExitStack()
        for key, value in (change(cfg) if change else {}).items():
            fault.enter_context(replaced_entry(cfg, key, value))
        verdict = proven(deployment, tmp_path / 'm.onnx', fault)
    rows = [row for case in cases_of(verdict) for row in case.substituted]
    assert rows and all(row.passed for row in rows) == (change is None), verdict.failures
