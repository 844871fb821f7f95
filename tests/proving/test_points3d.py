"""Pictures of LiDAR sweeps: points below boxes, both engines on one scale, differences ringed."""

import numpy as np

from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.draw3d import SWEEP_SIDE
from mmdeploy_ext.tasks import bbox3d
from mmdeploy_ext.tasks.results import Pair

CLASSES = ('car', 'bus')


def boxes(*rows):
    values = [[x, y, -1.0, 2.0, 4.0, 1.6, 0.3, 0.0, 0.0] for x, y in rows]
    scores = np.linspace(0.9, 0.5, len(rows), dtype=np.float32)
    return Detections3D(np.array(values, np.float32).reshape(-1, 9), scores, np.zeros(len(rows), np.int64))


def pair(reference, candidate, points=None):
    points = np.array([[3.0, 4.0, 0.0]], np.float32) if points is None else points
    return Pair('sweep', points, reference, candidate)


def test_a_box_of_one_side_alone_is_ringed_and_both_sides_keep_one_scale():
    same, more = boxes((6, 3)), boxes((6, 3), (40, 2))
    drawn = bbox3d.draw_pair(pair(same, more), CLASSES)
    left, right = drawn[80:, :SWEEP_SIDE], drawn[80:, -SWEEP_SIDE:]
    white = (right == 255).all(-1) & ~(left == 255).all(-1)
    assert white.sum() > 20
    # the box that both have is at the same pixels
    assert (left == right).all(-1).mean() > 0.97
    assert bbox3d.draw_pair(bbox3d.fit_pair(pair(more, same)), CLASSES).shape == drawn.shape
