"""Poses, times, matrices and pictures that people feed wrongly are refused by name."""

import dataclasses

import numpy as np
import pytest

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.runtime.frame_checks import (
    check_calibration,
    check_fields,
    check_matrices,
    check_pose,
    check_prepared,
    check_time,
)
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.preprocess.cameras import Calibration

LENS = np.array([[500.0, 0, 320, 0], [0, 500, 240, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
POSE = np.eye(4)


def with_entry(matrix, place, value):
    changed = matrix.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    'pose',
    [None, 'pose', POSE[:3], with_entry(POSE, (0, 3), np.nan), POSE * 2, with_entry(POSE, (0, 0), -1)],
    ids=['missing', 'text', 'shape', 'NaN', 'scaled', 'mirrored'],
)
def test_a_pose_that_is_not_rigid_is_refused(pose):
    with pytest.raises(DataError, match='ego_pose'):
        check_pose(pose)


@pytest.mark.parametrize('time', [None, 'now', np.inf, [1.0, 2.0]])
def test_a_time_that_is_no_number_is_refused(time):
    with pytest.raises(DataError, match='timestamp_s'):
        check_time(time)


@pytest.mark.parametrize(
    'calibration',
    [
        None,
        Calibration(with_entry(LENS, (0, 0), -500)[None], with_entry(LENS, (0, 0), -500)[None]),
        Calibration(np.diag([2.0, 1, 1, 1])[None] @ LENS, LENS[None]),
    ],
    ids=['missing', 'focal length', 'of other pixels'],
)
def test_a_calibration_that_is_no_camera_is_refused(calibration):
    with pytest.raises(DataError, match='calibration'):
        check_calibration(calibration, 1)


@pytest.mark.parametrize(
    'matrices',
    [LENS, LENS[None].repeat(2, 0), with_entry(LENS, (0, 0), np.nan)[None], np.zeros((1, 4, 4)), 'text'],
    ids=['shape', 'number of cameras', 'NaN', 'singular', 'text'],
)
def test_matrices_of_other_cameras_are_refused(matrices):
    with pytest.raises(DataError, match='lidar2img'):
        check_matrices('lidar2img', matrices, 1)


@pytest.mark.parametrize(
    'images', [np.zeros((2, 3, 4, 6), np.float32), np.zeros((1, 3, 4, 8), np.float32), np.zeros((1, 3, 4, 6))]
)
def test_pictures_of_another_size_or_type_are_refused(images):
    with pytest.raises(ShapeError, match='images'):
        check_prepared(images, (1, 3, 4, 6))


def test_a_rig_without_intrinsics_has_matrices_of_cameras_too():
    frame = Frame(np.zeros((1, 3, 4, 6), np.float32), LENS[None], None, POSE, 0.0, None)
    assert check_fields(frame, ['lidar2img'], 1)['lidar2img'].shape == (1, 4, 4)
    mirrored = dataclasses.replace(frame, lidar2img=(LENS * [-1, 1, 1, 1])[None])
    with pytest.raises(DataError, match='lidar2img of camera 0'):
        check_fields(mirrored, ['lidar2img'], 1)
