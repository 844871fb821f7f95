"""Decisions of PyTorch at a threshold, and values that rounding amplifies: what may differ, and how far."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

from mmdeploy_ext.proving import explain
from mmdeploy_ext.proving.drive_run import MODES, SHORT_DRIVE
from mmdeploy_ext.runtime.driving import DrivingScene
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec
from proofs import run_pair
from toy_stepper import Steps

STEPS, CLASSES = (
    TensorSpec(name, 'float32', (1, 'n', 2), groups=(ColumnGroup(rtol=0.0, atol=1e-3),))
    for name in ('steps', 'classes')
)
SPEC = GraphSpec('', (), (STEPS, CLASSES))
MEMORY = MemorySpec(needed=('steps', 'classes'), decided=('steps',))
STATE = StreamState({}, np.eye(4), 0.0, '')
SETTINGS = dict(memory=MEMORY, length=SHORT_DRIVE, task='driving')
FRAME = Frame(np.zeros(0), np.zeros(0), np.zeros(0), np.eye(4), 0.0, '')
SCENE = DrivingScene(
    np.float32([[0, 10, 0, 2, 4, 2, 0, 0, 0]]),
    np.float32([0.9]),
    np.array([0]),
    trajectories=np.zeros((1, 1, 6, 2), np.float32),
    mode_scores=np.ones((1, 1), np.float32),
    line_points=np.zeros((1, 20, 2), np.float32),
    line_scores=np.float32([0.9]),
    line_labels=np.array([0]),
    plan_points=np.zeros((1, 6, 2), np.float32),
    plan_scores=np.ones(1, np.float32),
    plan_mode=np.array([0]),
    plan_final=np.zeros((6, 2), np.float32),
)


def result(undecided=0, moved=0.0, name='steps'):
    """Return a frame's result; `moved` metres in an output, and in the trajectory or the box."""
    outputs = {tensor.name: np.zeros((1, 1, 2), np.float32) for tensor in (STEPS, CLASSES)}
    outputs[name] = outputs[name] + np.float32(moved)
    field = dict(steps='trajectories', classes='boxes')[name]
    scene = dataclasses.replace(SCENE, **{field: getattr(SCENE, field) + np.float32(moved)})
    return StepResult(outputs, scene, undecided=undecided)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
    ('moved', 'name', 'tied', 'passed'),
    [
        ((0.0, 0.0), 'steps', 0, True),
        ((0.1, 0.0), 'steps', 1, True),
        ((0.0, 0.1), 'steps', 0, False),
        ((0.1, 0.0), 'classes', 1, False),
    ],
)
def test_what_follows_from_an_undecided_decision_may_differ(mode, moved, name, tied, passed):
    row = judged(mode, [result(undecided=1), result()], [result(moved=by, name=name) for by in moved])
    assert (not row.reasons) is passed, row.reasons
    assert row.tied_frames == row.ties == len(row.excused) == tied


def test_one_frame_has_to_be_decided():
    row = judged('free', [result(undecided=1)] * 2, [result(moved=0.1)] * 2)
    assert row.tied_frames == 2 and row.reasons


def judged(mode, reference, candidate):
    return run_pair(Steps(reference, STATE), Steps(candidate, STATE), [FRAME] * 2, SPEC, mode, **SETTINGS)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
    ('moved_m', 'rounding_m', 'passed'),
    [
        (0.005, 0.002, True),  # three times the rounding of PyTorch's own float64
        (0.005, 0.001, False),
        (0.05, 0.05, False),  # more than ten bars
    ],
)
def test_a_trajectory_differs_as_far_as_pytorchs_own_rounding_and_is_named(mode, moved_m, rounding_m, passed):
    float64 = result(moved=rounding_m).detections
    got = dataclasses.replace(result(), detections=result(moved=moved_m).detections)
    sides = Steps([result()], STATE), Steps([got], STATE)
    with mock.patch.object(explain, 'draws_of', lambda *_: iter([float64])):
        row = run_pair(*sides, [FRAME] * 2, SPEC, mode, module=torch.nn.Identity(), **SETTINGS)
    assert (not row.reasons) is passed, row.reasons
    (named,) = row.reasons or {line.partition(': ')[2] for line in row.excused}
    assert 'class 0' in named and 'trajectory' in named


class Drifting:
    """A side whose trajectory moves in every frame, unless it runs in float64."""

    def __init__(self, by_m):
        self.by_m, self.state = by_m, None

    def reset(self):
        self.state = None

    def step(self, frame):
        was_reset = self.state is None or self.state.scene_token != frame.scene_token
        moved = np.zeros(1) if was_reset else self.state.tensors['moved']
        moved = moved + self.by_m * (torch.get_default_dtype() == torch.float32)
        self.state = StreamState(dict(moved=moved), frame.ego_pose, frame.timestamp_s, frame.scene_token)
        trajectories = SCENE.trajectories + np.float32(moved)
        scene = dataclasses.replace(SCENE, trajectories=trajectories)
        return dataclasses.replace(result(), detections=scene, was_reset=was_reset)


@pytest.mark.parametrize(('by_m', 'passed'), [(-4e-4, True), (-9e-4, False)])
@pytest.mark.parametrize('before', ['', 'bb'])
def test_the_rounding_of_a_free_drive_is_that_of_all_its_frames(by_m, passed, before):
    memory = dataclasses.replace(MEMORY, tensors=dict(moved=ColumnGroup(rtol=0.0, atol=1.0)))
    frames = [dataclasses.replace(FRAME, scene_token=token) for token in f'{before}aaaaa']
    settings = SETTINGS | dict(memory=memory, module=torch.nn.Identity())
    row = run_pair(Drifting(4e-4), Drifting(by_m), frames, SPEC, 'free', **settings)
    assert (not row.reasons) is passed, row.reasons
    assert not passed or len(row.excused) > 1


@pytest.mark.parametrize('kept', [True, False])
def test_a_run_in_float64_that_finds_another_box_measures_no_rounding(kept):
    names = 'boxes', 'scores', 'labels', 'trajectories', 'mode_scores'
    both = dataclasses.replace(SCENE, **{name: np.repeat(getattr(SCENE, name), 2, axis=0) for name in names})
    places, moved = np.zeros_like(both.boxes), np.zeros_like(both.trajectories)
    places[1, 0], moved[0] = 20, 1
    both = dataclasses.replace(both, boxes=both.boxes + places)
    got = dataclasses.replace(both, trajectories=both.trajectories + 5e-3 * moved)
    float64 = dataclasses.replace(
        both, boxes=both.boxes + (not kept) * places, trajectories=both.trajectories + 2e-3 * moved
    )
    sides = (Steps([dataclasses.replace(result(), detections=one)], STATE) for one in (both, got))
    with mock.patch.object(explain, 'draws_of', lambda *_: iter([float64])):
        row = run_pair(*sides, [FRAME] * 2, SPEC, 'free', module=torch.nn.Identity(), **SETTINGS)
    assert (not row.reasons) is kept, row.reasons
