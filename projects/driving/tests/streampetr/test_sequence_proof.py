"""The proof of real files of a toy StreamPETR: proven, refuted for another model, exact on long drives."""

import copy
import dataclasses

import numpy as np
import pytest

import toy_streampetr_deploy as toy
from mm2onnx_driving.streampetr import runtime as stream
from mmdeploy_ext.proving.drive_run import DriveLength
from mmdeploy_ext.proving.frames import SPECIAL, NearOrigin, output_spec
from mmdeploy_ext.runtime.geometry import relative_motion
from mmdeploy_ext.spec.metadata import read_metadata
from proofs import prove, prove_samples, run_far
from verdicts import cases_of, sequence_of


@pytest.fixture(scope='module')
def paths():
    return list(toy.files())


def said(verdict):
    return '; '.join(verdict.failures)


def test_the_files_of_an_export_are_proven(paths):
    verdict = prove(toy.detector(), paths, toy.drive(12), length=DriveLength(frames=12))
    assert verdict.proven, said(verdict)
    teacher, free = sequence_of(verdict)
    for row in (teacher, free):
        assert (row.frames, row.resets, row.time_jumps) == (12, 2, 1)
        assert row.match_rate == 1 and row.matched > 60
    case, special = cases_of(verdict)
    assert special.name == SPECIAL
    assert case.tensors and case.detections[0].matched == teacher.matched
    assert not case.traced and case.input_shape == '6x3x32x96'


@pytest.mark.matrix  # in the suite: faults of streams in test_faults.py
def test_another_model_is_refuted(paths):
    detector = dataclasses.replace(toy.detector(), model=copy.deepcopy(toy.detector().model))
    weight = detector.model.pts_bbox_head.cls_branches[0][6].weight
    weight.data.mul_(1.05)
    verdict = prove_samples(detector, paths, toy.drive(2))
    assert not verdict.proven
    assert 'graph: pts_head_memory: ' in said(verdict) and 'cls_branches' in said(verdict)
    assert 'teacher-forced: all_cls_scores: 2 of 2 frames fail, first scene 0 frame 0' in said(verdict)


def test_scenes_are_moved_to_the_origin_and_nothing_else_changes():
    drive = list(toy.drive(6, origin_m=(1800.0, -400.0)))
    poses = [dataclasses.replace(frame, ego_pose=frame.ego_pose.copy()) for frame in drive]
    moved = NearOrigin(drive)
    near = list(moved)
    assert 1700 < moved.moved_m < 2000
    for scene in range(3):
        first = near[2 * scene]
        assert np.abs(first.ego_pose[:3, 3]).max() <= 0.5
        for far, frame in zip(drive[2 * scene :], near[2 * scene : 2 * scene + 2], strict=False):
            assert dataclasses.replace(frame, ego_pose=far.ego_pose, ego_pose_inv=far.ego_pose_inv) == far
            np.testing.assert_allclose(frame.ego_pose @ frame.ego_pose_inv, np.eye(4), atol=1e-6)
        one, two = (relative_motion(*(f.ego_pose for f in pair[2 * scene :][:2])) for pair in (drive, near))
        np.testing.assert_array_equal(one, two)
    assert all((one.ego_pose == two.ego_pose).all() for one, two in zip(drive, poses, strict=True))
    home = list(toy.drive(3))
    assert all(one is two for one, two in zip(home, NearOrigin(home), strict=True))


def test_a_long_drive_far_from_the_origin_is_as_exact_as_the_first_frame(paths):
    """7e5 m out, time stamps above 1.6e9 s, twenty minutes in: equal up to the rounding of float64 poses."""
    family, all_metadata = toy.detector().family, [read_metadata(path) for path in paths]
    steppers = [family.runner(paths, {}) for _ in range(2)]
    frames = toy.drive(12, exact_poses=True, start_s=0.0)
    memory = family.memory_spec(all_metadata[-1].postprocess)
    row = run_far(*steppers, frames, output_spec(all_metadata), memory=memory, length=DriveLength(frames=12))
    assert row.passed and row.ties == 0, row.reasons
    errors = {tensor.tensor: tensor.max_abs for tensor in row.tensors}
    assert errors['all_cls_scores'] < 5e-5 and errors['all_bbox_preds [xyz]'] < 5e-4
    assert errors['memory reference_point'] < 5e-4 and errors['memory timestamp'] < 1e-6


def test_the_ego_motion_in_float32_is_seen_though_the_drive_is_near_the_origin(paths, monkeypatch):
    def motion(last, pose):
        return (np.linalg.inv(np.float32(pose)) @ np.float32(last)).astype(np.float64)

    monkeypatch.setattr(stream, 'relative_motion', motion)
    verdict = prove(toy.detector(), paths, toy.drive(2), written=True, length=DriveLength(frames=2, resets=0))
    assert SPECIAL in said(verdict) and 'memory' in said(verdict)
