"""Instances of a memory that is chosen anew in every frame: ties, errors and tracks."""

import dataclasses

import numpy as np
import pytest

from mmdeploy_ext.proving.drive_run import SHORT_DRIVE, InstancePairing
from mmdeploy_ext.proving.subject import Step
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult, StreamState
from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec
from proofs import run_pair
from toy_stepper import Steps

INSTANCES, KEPT, TIE = 8, 5, 2e-5
SPEC = InstanceRows(
    tensors=('kept_place', 'track'),
    place=('kept_place', 'place'),
    per_query=('place',),
    confidence='confidence',
    first_scores='first_scores',
    ids=('track', 'track', 'next'),
)
FOUND = Detections3D(np.ones((1, 9), np.float32), np.float32([0.9]), np.array([0]))
CONFIDENCE = np.array([0.9, 0.8, 0.4, 0.3, 0.2, 0.95, 0.65, 0.64999])
SWAPPED = np.array([0.9, 0.8, 0.4, 0.3, 0.2, 0.95, 0.649995, 0.65])
FIRST = np.array([np.nan] * KEPT + [0.5, 0.4, 0.39999])


def side(
    order=range(INSTANCES), confidence=CONFIDENCE, tracks=range(INSTANCES), kept=None, next_id=INSTANCES
):
    """Return the result and the memory of an engine that has the instances in an order."""
    order = list(order)
    place = np.arange(INSTANCES)[order, None] * np.array([[1.0, -2.0]])
    confidence = np.asarray(confidence)[order]
    kept = np.argsort(-confidence, kind='stable')[:KEPT] if kept is None else np.array(kept)
    outputs = dict(place=place[None], confidence=confidence[None], first_scores=FIRST[None])
    outputs['track'] = np.array([list(tracks)])
    state = dict(kept_place=place[None, kept], track=outputs['track'][:, kept], next=np.array([next_id]))
    return StepResult(outputs, FOUND), StreamState(state, np.eye(4), 0.0, '')


def follow(reference, candidate, pairing=None):
    steps = (Step(result.outputs, state=state) for result, state in (reference, candidate))
    return (pairing or InstancePairing(SPEC)).follow(*steps, TIE, 1e-3)


EXCHANGED = [0, 1, 2, 3, 4, 5, 7, 6]


def test_equal_frames_have_neither_ties_nor_a_fault():
    followed = follow(side(), side())
    assert (followed.fault, followed.ties, followed.parted) == ('', 0, False)
    np.testing.assert_array_equal(followed.queries, range(INSTANCES))


def test_instances_of_near_scores_may_be_exchanged_and_the_memory_takes_the_order_of_the_reference():
    pairing = InstancePairing(SPEC)
    candidate = side(EXCHANGED, SWAPPED)  # kept in another order, too
    followed = follow(side(), candidate, pairing)
    assert (followed.fault, followed.parted) == ('', False) and followed.ties
    np.testing.assert_array_equal(followed.queries, EXCHANGED)
    reordered = pairing.reordered(candidate[1])
    np.testing.assert_array_equal(reordered['kept_place'], side()[1].tensors['kept_place'])
    assert pairing.reordered(candidate[1]) == {}  # in the order of the reference from now on


def test_memories_part_where_a_tie_decides_which_instance_is_the_last_to_be_kept():
    sides = [np.r_[values[:2], 0.7, values[3:]] for values in (CONFIDENCE, SWAPPED)]
    followed = follow(*(side(confidence=values) for values in sides))
    assert (followed.fault, followed.parted) == ('', True)


@pytest.mark.parametrize(
    ('candidate', 'fault'),
    [
        (side([0, 1, 2, 3, 4, 6, 5, 7]), 'instances 5 and 6 are exchanged, first scores 0.1 apart'),
        (side([1, 0, 2, 3, 4, 5, 6, 7]), 'exchanged, first scores inf apart'),
        (
            side(kept=[0, 1, 2, 6, 3]),
            'memory row 0 has the confidence 0.900000, but a better one was left out: 0.950000',
        ),
        (side(tracks=[*range(7), 9]), 'instance 7 has the track id 9, expected 7'),
        (side(tracks=[*range(7), -1]), 'instance 7 has the track id -1, expected 7'),
        (side(next_id=0), 'the next track id is 0, expected 8'),
    ],
)
def test_what_is_no_tie_is_a_fault(candidate, fault):
    assert fault in follow(side(), candidate).fault


def test_a_track_keeps_the_id_that_a_tie_gave_it():
    pairing = InstancePairing(SPEC)
    assert not follow(side(), side(EXCHANGED), pairing).fault
    assert not follow(side(), side(EXCHANGED), pairing).fault
    assert 'has the track id 6, expected 7' in follow(side(), side(), pairing).fault


@pytest.mark.parametrize(('gap', 'partner'), [(0.5 * TIE, -1), (10 * TIE, 4)])
def test_a_tie_at_the_cut_of_a_frames_own_instances_leaves_one_without_a_partner(gap, partner):
    sides = [side(), side([0, 1, 2, 3, 4, 5, 7, 6], SWAPPED)]
    for result, _ in sides:
        result.outputs['first_scores'] = np.array([[np.nan, np.nan, 0.5, 0.5, 0.4 + gap, 0.5, 0.4, 0.4]])
    sides[1][0].outputs['place'][0, 4] += 3.0
    assert follow(*sides).queries[4] == partner


LINES = InstanceRows(
    tensors=('kept_line',),
    place=('kept_line', 'line'),
    per_query=('line',),
    confidence='line_confidence',
    first_scores='first_line_scores',
)
FIELDS = dict(name='a', scene_token='', timestamp_s=0.0, ego_pose=np.eye(4))
FRAME = dataclasses.make_dataclass('Moment', FIELDS)(**FIELDS)


def with_lines(sides, order, confidence):
    """Add four lines, of which two are kept."""
    result, state = sides
    line = np.arange(4.0)[order, None] * np.array([[1.0, 3.0]])
    confidence = np.array(confidence)[order]
    kept = np.argsort(-confidence, kind='stable')[:2]
    outputs = dict(line=line[None], line_confidence=confidence[None])
    outputs['first_line_scores'] = np.array([[np.nan, np.nan, 0.4, 0.4]])
    result.outputs.update(outputs)
    state.tensors['kept_line'] = line[None, kept]
    return result, state


@pytest.mark.parametrize(('second', 'passed'), [(0.899999, True), (0.8, False)])
def test_rows_of_each_kind_are_followed_by_themselves(second, passed):
    reference = with_lines(side(), [0, 1, 2, 3], [0.2, 0.1, 0.9, second])
    candidate = with_lines(side(EXCHANGED, SWAPPED), [0, 1, 3, 2], [0.2, 0.1, second, 0.9])
    exact = ColumnGroup(rtol=0.0, atol=0.0)
    tensors = dict.fromkeys(('kept_place', 'kept_line', 'next'), exact)
    memory = MemorySpec(tensors=tensors, needed=('place', 'line'), instances=(SPEC, LINES))
    outputs = tuple(TensorSpec(name, 'float32', (1, 'n', 2), groups=(exact,)) for name in ('place', 'line'))
    sides = (Steps([result], state) for result, state in (reference, candidate))
    settings = dict(memory=memory, length=SHORT_DRIVE)
    row = run_pair(*sides, [FRAME] * 2, GraphSpec('', (), outputs), 'teacher', **settings)
    assert (not row.reasons) is passed, row.reasons
    assert row.ties
