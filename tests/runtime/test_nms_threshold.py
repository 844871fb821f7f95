"""Suppression in numpy at its threshold."""

import numpy as np

from mmdeploy_ext.runtime.detections import nms


def test_an_iou_that_equals_the_threshold_suppresses_nothing():
    boxes, scores = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32), np.array([0.9, 0.8], np.float32)
    assert sorted(nms(boxes, scores, 0.5).tolist()) == [0, 1]
    assert nms(boxes, scores, 0.49).tolist() == [0]


def plain_nms(boxes, scores, threshold):
    """Compare each box with all boxes that were kept."""
    kept = []
    for row in np.argsort(-scores, kind='stable'):
        x1, y1, x2, y2 = boxes[row]
        others = boxes[kept]
        sides = np.minimum(others[:, 2:], [x2, y2]) - np.maximum(others[:, :2], [x1, y1])
        overlap = sides.clip(0).prod(1)
        areas = (others[:, 2:] - others[:, :2]).prod(1)
        with np.errstate(invalid='ignore'):
            iou = overlap / (areas + (x2 - x1) * (y2 - y1) - overlap)
        if not (iou > threshold).any():
            kept.append(row)
    return kept


def test_only_boxes_side_by_side_are_left_out_of_the_comparison():
    random = np.random.default_rng(0)
    places, sizes = random.uniform(-20, 300, (400, 2)), random.uniform(-3, 90, (400, 2))
    boxes = np.float32(np.concatenate([places, places + sizes], 1))
    boxes += random.integers(0, 4, 400)[:, None] * boxes.max()
    boxes[:3] = [[-500, 0, 900, 300], [np.nan, 0, 9, 9], [0, 0, np.inf, 9]]
    scores = np.float32(random.random(400).round(2))
    expected = plain_nms(boxes, scores, 0.5)
    assert 200 < len(expected) < 399
    assert nms(boxes, scores, 0.5).tolist() == expected
    assert nms(boxes, scores, 0.5, limit=7).tolist() == expected[:7]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
