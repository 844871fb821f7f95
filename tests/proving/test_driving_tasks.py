"""Plans and lines: which differences are right, ties, or wrong."""

import dataclasses

import numpy as np
import pytest

from mmdeploy_ext.runtime.driving import Plan, Polylines
from mmdeploy_ext.runtime.tasks import driving
from mmdeploy_ext.spec.matching import TIE

WAYS = np.arange(24, dtype=np.float32).reshape(3, 4, 2)


def a_plan(mode=0, lead=0.5, moved=0.0, final=1.0):
    points = WAYS.copy()
    points[1, 2] += moved
    return Plan(points, np.float32([0.9, 0.9 - lead, 0.1]), mode, points[mode] * np.float32(final))


def test_an_equal_plan_is_right():
    row = driving.match_plans('a', a_plan(), a_plan())
    assert row.passed and row.matched == 1 and not row.excused


@pytest.mark.parametrize(('lead', 'passed'), [(TIE / 2, True), (TIE * 2, False)])
def test_another_mode_is_listed_beside_a_tie_and_else_wrong(lead, passed):
    row = driving.match_plans('a', a_plan(0, lead), a_plan(1, lead))
    assert row.passed is passed and row.matched == passed
    assert bool(row.excused) is passed and all('mode 1' in line for line in row.excused)


def test_a_better_mode_than_pytorchs_is_no_tie():
    """PyTorch's planner took the second best."""
    assert not driving.match_plans('a', a_plan(1), a_plan(0)).passed


@pytest.mark.parametrize(('moved', 'passed'), [(6e-4, True), (2e-3, False)])
def test_points_of_every_mode_count(moved, passed):
    assert driving.match_plans('a', a_plan(), a_plan(moved=moved)).passed is passed


@pytest.mark.parametrize('mode', [0, 1])
def test_the_chosen_plan_counts_beside_its_mode(mode):
    """Beside a tie it is the file's own mode that is driven."""
    for final, passed in ((1.0, True), (0.9, False)):
        candidate = a_plan(mode, TIE / 2, final=final)
        assert driving.match_plans('a', a_plan(0, TIE / 2), candidate).passed is passed


def test_the_plan_that_is_driven_at_a_tie_is_compared_with_pytorchs():
    candidate = a_plan(1, TIE / 2, moved=6e-4)
    assert driving.match_plans('a', a_plan(0, TIE / 2), candidate).passed
    candidate.final[2] += 6e-4
    assert not driving.match_plans('a', a_plan(0, TIE / 2), candidate).passed


def test_a_plan_of_nan_or_of_another_shape_is_broken():
    assert driving.match_plans('a', a_plan(), a_plan(moved=np.nan)).broken
    for final in (a_plan().final[:1], a_plan(final=np.nan).final):
        assert driving.match_plans('a', a_plan(), dataclasses.replace(a_plan(), final=final)).broken


def lines(order=(0, 1, 2), labels=(0, 0, 1), change=lambda points: points):
    points = (WAYS * 10)[list(order)]
    return Polylines(change(points), np.float32([0.9, 0.8, 0.7])[list(order)], np.array(labels)[list(order)])


@pytest.mark.parametrize(
    ('candidate', 'passed'),
    [
        (lines(), True),
        (lines(change=lambda points: points + np.float32(5e-4)), True),
        (lines(change=lambda points: points + np.float32(2e-3)), False),
        (lines(change=lambda points: points[:, ::-1]), False),  # a line has a direction
        (lines(labels=(0, 1, 1)), False),
        (lines(order=(0, 2, 1)), False),  # not best first
        (lines(order=(0, 1)), False),
    ],
)
def test_lines_are_equal_point_by_point(candidate, passed):
    assert driving.match_lines('a', lines(), candidate).passed is passed
