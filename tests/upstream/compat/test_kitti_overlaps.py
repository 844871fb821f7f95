"""Overlaps of turned boxes in KITTI's evaluator, which has them on a GPU alone."""

import numpy as np
import pytest

from mmdeploy_ext.upstream.compat.kitti_overlaps import OF_FIRST, OF_UNION, overlaps


def test_overlaps_of_turned_boxes_are_those_of_kitti_without_its_cuda_kernel():
    boxes = np.array(
        [[0, 0, 4, 2, 0], [0, 0, 4, 2, np.pi / 2], [1, 0, 2, 2, 0], [9, 9, 1, 1, 0.3]], np.float32
    )
    np.testing.assert_allclose(overlaps(boxes, boxes, OF_UNION)[0], [1, 4 / 12, 4 / 8, 0], atol=1e-6)
    np.testing.assert_allclose(overlaps(boxes, boxes, OF_FIRST)[2], [1, 2 / 4, 1, 0], atol=1e-6)
    turned = np.array([[0, 0, 4, 1, np.pi / 4], [1.2, -1.2, 0.5, 0.5, 0]], np.float32)
    whole = np.array([[0, 0, 2, 2, 0], [0, 0, 2, 4, 0]])
    np.testing.assert_allclose(overlaps(whole, whole), [[1, 0.5], [0.5, 1]], atol=1e-6)
    assert overlaps(turned[:1], turned[1:])[0, 0] > 0  # angles are clockwise: the long side goes down
    assert overlaps(turned[:1], turned[1:] * (1, -1, 1, 1, 1))[0, 0] == 0


@pytest.mark.parametrize('criterion', [OF_UNION, OF_FIRST])
def test_a_box_that_is_a_point_overlaps_nothing(criterion):
    box, points = np.array([[0, 0, 4, 2, 0.3]]), np.array([[0.5, 0, 0, 0, 0], [50, 0, 0, 0, 0.1]])
    assert not overlaps(box, points, criterion).any() and not overlaps(points, box, criterion).any()
