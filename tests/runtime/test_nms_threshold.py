"""Suppression in numpy at its threshold."""

import numpy as np

from mmdeploy_ext.runtime.detections import nms


def test_an_iou_that_equals_the_threshold_suppresses_nothing():
    boxes, scores = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32), np.array([0.9, 0.8], np.float32)
    assert sorted(nms(boxes, scores, 0.5).tolist()) == [0, 1]
    assert nms(boxes, scores, 0.49).tolist() == [0]
