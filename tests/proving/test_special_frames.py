"""Moments in which one thing of the rig changes: what is kept of a rig has to look at every matrix."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from mmdeploy_ext.families.synthetic.drive import SyntheticDrive, synthetic_drive
from mmdeploy_ext.families.synthetic.moments import (
    changed_drive,
)
from mmdeploy_ext.proving.drive_run import Drives
from mmdeploy_ext.proving.frames import SPECIAL, best_scores_row, special_frames, with_moment
from mmdeploy_ext.runtime import frame_checks
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.preprocess.cameras import Calibration
from toy_rig import RULE
from toy_stepper import MEMORY, SPEC, ToyStepper


def test_frames_of_a_drive_have_rigs_that_are_let_through_and_differ_in_one_thing():
    frames = list(changed_drive(next(iter(synthetic_drive(1, RULE)))))
    rigs = [Calibration(frame.lidar2img, frame.intrinsics) for frame in frames]
    for rig in rigs:
        frame_checks.check_calibration(rig, len(frames[0].images))
    places = [(before.lidar2img != after.lidar2img).any() for before, after in itertools.pairwise(rigs)]
    lenses = [(before.intrinsics != after.intrinsics).any() for before, after in itertools.pairwise(rigs)]
    assert (places, lenses) == ([True, True, False, False], [True, False, True, False])
    focal_lengths = [rig.intrinsics[:, [0, 1], [0, 1]] for rig in rigs]
    assert (np.abs(focal_lengths[3] / focal_lengths[2] - 1) > 0.3).any(1).sum() == 1  # of one camera alone
    assert not frames[-1].images.any() and len({frame.scene_token for frame in frames}) == 1


def test_frames_without_a_moment_are_half_a_second_apart_and_others_stay():
    bare = Frame(np.zeros((1, 3, 2, 2), np.float32), *[None] * 5)
    late = with_moment(bare, 3)
    assert (late.timestamp_s, late.scene_token, late.ego_pose.tolist()) == (1.5, '', np.eye(4).tolist())
    kept = with_moment(dataclasses.replace(bare, timestamp_s=9.0, scene_token='a'), 3)
    assert (kept.timestamp_s, kept.scene_token) == (9.0, 'a')
    assert with_moment(late, 5) is late


def test_the_best_score_of_an_empty_sweep_may_exceed_pytorchs_by_a_bar():
    def found(*scores):
        return Detections3D(np.zeros((len(scores), 9)), np.array(scores), np.zeros(len(scores), int))

    for scores, excess in (((0.1, 0.75), False), ((0.9,), True), ((), False)):
        assert best_scores_row(found(0.5, 0.2), found(*scores)).passed == (not excess)


class Blind(ToyStepper):
    """Refuses every frame."""

    def step(self, frame):
        raise ValueError('no such frame')


@pytest.mark.parametrize(('candidate', 'reasons'), [(Blind(), True), (ToyStepper(logit=-99), False)])
def test_a_file_that_fails_on_a_special_frame_is_not_proven_though_nothing_is_found(candidate, reasons):
    (frame,) = SyntheticDrive(1, (32, 64))
    drives_of = functools.partial(Drives, ToyStepper(logit=-99), spec=SPEC, memory=MEMORY)
    (case,), found = special_frames(changed_drive(frame), candidate, drives_of, '')
    assert case.name == SPECIAL and bool(found) == reasons, found
