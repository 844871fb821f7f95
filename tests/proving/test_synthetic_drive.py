"""The synthetic drive: poses and times of a car, a calibrated rig, pictures that go on, scene changes."""

import itertools

import numpy as np
import pytest

from mmdeploy_ext.families.synthetic.drive import SyntheticDrive, rig

DRIVE = SyntheticDrive(frames=30, size=(32, 88))


@pytest.fixture(scope='module')
def frames():
    return list(DRIVE)


def test_two_scene_changes_and_one_jump_in_time(frames):
    scenes = [frame.scene_token for frame in frames]
    assert len(set(scenes)) == 3 and sum(a != b for a, b in itertools.pairwise(scenes)) == 2
    gaps = np.diff([frame.timestamp_s for frame in frames])
    inside = [round(gap, 3) for gap, a, b in zip(gaps, scenes, scenes[1:], strict=False) if a == b]
    assert sorted(set(inside)) == [0.5, 1.3] and inside.count(1.3) == 1


@pytest.mark.parametrize(
    ('cameras', 'size'), [(6, (256, 704)), (6, (320, 800)), (4, (64, 96)), (1, (900, 1600))]
)
def test_a_point_ahead_is_in_the_middle_of_the_front_camera(cameras, size):
    intrinsics, lidar2img, yaws = rig(cameras, size)
    assert intrinsics.shape == lidar2img.shape == (cameras, 4, 4) and len(yaws) == cameras
    u, v, depth, _ = lidar2img[0] @ (0, 20, 0, 1)
    assert depth == pytest.approx(19.2) and abs(u / depth / size[1] - 0.5) < 0.05 and 0 < v / depth < size[0]
    u2, *_ = lidar2img[0] @ (1, 20, 0, 1)
    assert u2 / depth > u / depth, 'x is to the right'
    behind = lidar2img[0] @ (0, -20, 0, 1)
    assert behind[2] < 0
