"""Boxes are drawn where they are: in the right camera, at the right pixels, cut at the camera, from above."""

import numpy as np
import pytest
import torch

from mmdeploy_ext.runtime.bird_eye import BoxLayer, bird_eye
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.draw import class_colour
from mmdeploy_ext.runtime.draw3d import (
    NEAR,
    draw_camera,
    in_drawn_order,
    project_segments,
)
from mmdeploy_ext.runtime.geometry import box_corners

CLASSES = [f'class {index}' for index in range(10)]
INTRINSIC = np.array([[100.0, 0, 160, 0], [0, 100, 90, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def looking(yaw):
    """A camera at the origin of the LiDAR frame that looks along `yaw`, 320 x 180 pixels."""
    forward, down = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([0.0, 0, -1])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.cross(down, forward), down, forward])
    return INTRINSIC @ matrix


def detections(*boxes, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 9)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels)
    return Detections3D(boxes, np.full(len(boxes), 0.8, np.float32), labels)


def box(x, y, yaw=0.0, vx=0.0, vy=0.0):
    return [x, y, -0.75, 4.0, 2.0, 1.5, yaw, vx, vy]


def coloured(picture, label=0):
    """Pixels (rows, columns) of exactly a class's colour."""
    return np.nonzero((picture == class_colour(label)).all(-1))


def test_corners_are_those_of_mmdet3d():
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    boxes = np.random.default_rng(0).uniform(-3, 3, (20, 9)).astype(np.float32)
    boxes[:, 3:6] = np.abs(boxes[:, 3:6]) + 0.2
    wanted = LiDARInstance3DBoxes(torch.from_numpy(boxes), box_dim=9).corners.numpy()
    for one, two in zip(box_corners(boxes), wanted, strict=True):
        one, two = (corners[np.lexsort(np.round(corners, 3).T)] for corners in (one, two))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)


def test_lines_are_cut_at_the_camera():
    camera = looking(0.0)
    starts, ends = (
        np.array([[-5.0, 1, 0], [-5, 1, 0], [10, 0, 0]]),
        np.array([[5.0, 1, 0], [-1, 1, 0], [10, 2, 0]]),
    )
    lines = project_segments(starts, ends, camera)
    assert len(lines) == 2
    np.testing.assert_allclose(lines[0], [160 - 100 / NEAR, 90, 160 - 20, 90])
    np.testing.assert_allclose(lines[1], [160, 90, 140, 90])
    np.testing.assert_allclose(project_segments(ends, starts, camera)[0], lines[0][[2, 3, 0, 1]])


def test_a_box_is_drawn_where_it_is_and_only_in_front():
    image = np.zeros((180, 320, 3), np.uint8)
    layer = BoxLayer('x', detections(box(12, 0)))
    picture = draw_camera(image, looking(0.0), layer, CLASSES)
    picture[:82] = 0  # the label
    rows, columns = coloured(picture)
    # the near face is 10 m away: half of 2 m are 10 pixels, half of 1.5 m are 7.5
    assert abs(columns.min() - 150) <= 2 and abs(columns.max() - 170) <= 2 and rows.max() <= 100
    assert not draw_camera(image, looking(np.pi), layer, CLASSES).any()
    assert not image.any()


def test_cameras_in_another_order_are_drawn_in_that_of_nuscenes():
    names = ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT')
    images, matrices = in_drawn_order(list(range(6)), np.arange(6), names)
    assert images == matrices.tolist() == [1, 2, 0, 4, 3, 5]


@pytest.mark.parametrize(
    ('forward', 'place', 'quadrant'),
    [
        ((0, 1), (0, 30), 'top'),
        ((1, 0), (0, 30), 'left'),
    ],
)
def test_forward_is_up_from_above(forward, place, quadrant):
    picture = bird_eye([BoxLayer('x', detections(box(*place)))], CLASSES, 400, forward=np.array(forward))
    picture[380:, :30] = 0  # the legend
    rows, columns = coloured(picture)
    offset = dict(top=(-1, 0), left=(0, -1), right=(0, 1))[quadrant]
    pixels = 30 * 400 / (2 * 61.2)
    assert rows.mean() == pytest.approx(200 + offset[0] * pixels, abs=4)
    assert columns.mean() == pytest.approx(200 + offset[1] * pixels, abs=4)
