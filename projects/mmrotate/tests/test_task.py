"""Matching of rotated boxes: one rectangle, and one reading of it unless rounding decides between two."""

import dataclasses

import cv2
import numpy as np
import pytest

from mm2onnx_mmrotate import readings, task
from mm2onnx_mmrotate.detections import RotatedDetections, corners_of
from mmdeploy_ext.runtime.draw import class_colour, draw_results
from mmdeploy_ext.runtime.tasks import match_bars, place_text, task_module
from mmdeploy_ext.spec.results import Pair, bars_of

HALF = np.pi / 2
GREY = np.full((200, 300, 3), 127, np.uint8)


def detections(*boxes, version='le90', labels=None, scores=None):
    count = len(boxes)
    scores = np.linspace(0.9, 0.5, count) if scores is None else scores
    labels = np.zeros(count) if labels is None else labels
    boxes = np.array(boxes, np.float32).reshape(-1, 5)
    return RotatedDetections(boxes, np.array(scores, np.float32), np.array(labels, np.int64), version)


def match(reference, candidate, **settings):
    return task.match_detections('picture', reference, candidate, **settings)


def turned(box, quarters):
    """Return another reading of the rectangle of a box."""
    x, y, width, height, angle = box
    if quarters % 2:
        width, height = height, width
    return x, y, width, height, angle + quarters * HALF


def test_it_is_a_task_of_the_core():
    assert task_module('mm2onnx_mmrotate.task') is task


def test_corners_are_those_of_mmrotate():
    import torch
    from mmrotate.core.bbox import transforms

    rng = np.random.default_rng(0)
    boxes = (rng.uniform(0, 1, (50, 5)) * [200, 200, 90, 30, 3]).astype(np.float32)
    for version in ('oc', 'le90', 'le135'):
        polygons = transforms.obb2poly(torch.from_numpy(boxes), version).numpy().reshape(-1, 4, 2)
        np.testing.assert_allclose(corners_of(boxes), polygons, atol=1e-3)


def test_the_iou_is_that_of_mmcv():
    import torch
    from mmcv.ops import box_iou_rotated

    rng = np.random.default_rng(1)
    boxes = (rng.uniform(0, 1, (400, 5)) * [40, 40, 30, 30, 3] + [0, 0, 2, 2, 0]).astype(np.float32)
    others = boxes + rng.normal(0, 0.3, boxes.shape).astype(np.float32)
    expected = box_iou_rotated(torch.from_numpy(boxes), torch.from_numpy(others), aligned=True).numpy()
    iou = task.class_iou(detections(*boxes), detections(*others))
    np.testing.assert_allclose(np.diag(iou), expected, atol=1e-4)


def test_boxes_match_in_any_order_and_within_a_class():
    boxes = (50, 60, 40, 20, 0.3), (150, 60, 60, 10, -1.2)
    row = match(detections(*boxes), detections(*boxes[::-1], scores=[0.5, 0.9]))
    assert (row.passed, row.matched, row.worst_iou) == (True, 2, 1.0)
    row = match(detections(*boxes), detections(*boxes, labels=[0, 1]))
    assert (row.matched, row.missing, row.extra) == (1, 1, 1)
    assert not match(detections(*boxes), detections(boxes[0], scores=[0.9])).passed
    assert match(detections(), detections()).passed


@pytest.mark.parametrize(
    ('title', 'box'),
    [
        ('angle off', (50, 60, 40, 20, 0.31)),
        ('sign of the angle', (50, 60, 40, 20, -0.3)),
        ('w and h exchanged', (50, 60, 20, 40, 0.3)),
        ('wrapped at a quarter without an exchange', (50, 60, 40, 20, 0.3 - HALF)),
        ('upright box around it', (50, 60, 44.1, 30.9, 0.0)),
        ('longer', (50, 60, 40.5, 20, 0.3)),
    ],
)
def test_another_rectangle_fails_in_both_directions(title, box):
    right = (50, 60, 40, 20, 0.3)
    for sides in ((right, box), (box, right)):
        assert not match(*(detections(side) for side in sides)).passed


@pytest.mark.parametrize('version', ['oc', 'le90', 'le135'])
@pytest.mark.parametrize('quarters', [-2, -1, 1, 2])
def test_another_reading_of_the_rectangle_fails_within_the_interval(version, quarters):
    box = (50, 60, 40, 20, 0.4)
    row = match(detections(box, version=version), detections(turned(box, quarters), version=version))
    assert not row.passed and f'quarter turns of the angle off by up to {abs(quarters)}' in row.reason
    assert row.worst_iou == 1.0


@pytest.mark.parametrize(
    ('version', 'angle', 'quarters'),
    [
        ('le90', -HALF, 2),
        ('le90', HALF, -2),
        ('le135', -HALF / 2, 2),
        ('le135', 1.5 * HALF, -2),
        ('oc', 0.0, 1),
        ('oc', HALF, -1),
    ],
)
def test_at_the_ends_of_its_interval_an_angle_may_be_at_the_other_end(version, angle, quarters):
    near = (50, 60, 40, 20, angle + 2e-4 * np.sign(quarters))
    there = turned((50, 60, 40, 20, angle - 1e-4 * np.sign(quarters)), quarters)
    for sides in ((near, there), (there, near)):
        assert match(*(detections(side, version=version) for side in sides)).passed
    other = {'le90': 'le135', 'le135': 'oc', 'oc': 'le90'}[version]
    assert not match(detections(near, version=other), detections(there, version=other)).passed


def test_an_exchanged_angle_version_fails():
    """le90 and le135 read a rectangle that points up, say at -80 and at 100 degrees, half a turn apart."""
    angles = np.linspace(-HALF, HALF, 16)[1:-1]
    boxes = [(50 + 9 * index, 60, 40, 20, angle) for index, angle in enumerate(angles)]
    others = [(*box[:4], (box[4] + HALF / 2) % np.pi - HALF / 2) for box in boxes]
    row = match(detections(*boxes), detections(*others))
    assert not row.passed and 0 < row.outside < len(boxes)


@pytest.mark.parametrize('quarters', [1, 2, 3])
def test_a_square_has_no_angle_of_its_own_but_a_place(quarters):
    square = (50, 60, 30, 30.001, 0.4)
    assert match(detections(square), detections(turned(square, quarters))).passed
    assert not match(detections(square), detections((*square[:4], 0.42))).passed
    assert not match(detections(square), detections(turned(square, quarters + 3))).passed
    almost = (50, 60, 30, 31, 0.4)
    assert not match(detections(almost), detections(turned(almost, quarters))).passed


def test_slivers_are_compared_by_their_corners():
    sliver = (50, 60, 40, 1e-3, 0.4)
    assert match(detections(sliver), detections((50, 60.004, 40, 0, 0.4))).passed
    assert not match(detections(sliver), detections((50, 60.02, 40, 1e-3, 0.4))).passed


def test_broken_lists_fail():
    box = (50, 60, 40, 20, 0.3)
    row = match(detections(box), detections((50, 60, 40, 20, np.nan)))
    assert not row.passed and row.broken and 'NaN' in row.reason
    narrow = dataclasses.replace(detections(box), boxes=np.zeros((1, 4), np.float32))
    assert match(detections(box), narrow).broken


def test_below_float32_every_reading_of_a_near_rectangle_passes():
    bars = match_bars('mm2onnx_mmrotate.task', bars_of('fp16'))
    box = (50, 60, 40, 20, 0.4)
    assert match(detections(box), detections(turned((50.2, 60, 40, 20, 0.41), 2)), **bars).passed
    assert not match(detections(box), detections((50, 60, 20, 40, 0.4)), **bars).passed
    assert 'IoU 0.9' in place_text('mm2onnx_mmrotate.task', bars_of('fp16'))


def test_results_as_json_and_in_the_format_of_mmrotate():
    found = detections((50, 60, 40, 20, HALF), (10, 10, 4, 4, 0), labels=[1, 0])
    first = found.to_json(('ship', 'plane'))[0]
    assert (first['name'], first['bbox_cxcywha']) == ('plane', [50, 60, 40, 20, 1.570796])
    assert first['corners_xy'] == [[60, 40], [60, 80], [40, 80], [40, 40]]
    ships, planes, rest = found.to_mmdet_result(3)
    assert (ships.shape, planes.shape, rest.shape) == ((1, 6), (1, 6), (0, 6))
    np.testing.assert_allclose(planes[0], [50, 60, 40, 20, HALF, 0.9], rtol=1e-6)
    assert found.above(0.7).version == 'le90' and len(found.above(0.7)) == 1


def test_a_picture_shows_the_corners():
    found = detections((150, 100, 80, 40, 0.5))
    picture = draw_results('rotated_dense', GREY, found, ('ship',))
    for x, y in found.corners[0].round().astype(int):
        assert tuple(picture[y, x]) == class_colour(0)
    assert (draw_results('rotated_dense', GREY, found, ('ship',), score_thr=0.95) == GREY).all()


def test_a_pair_is_drawn_with_what_differs():
    both = detections((150, 100, 80, 40, 0.5)), detections((150, 100, 80, 40, -0.5))
    pair = task.fit_pair(Pair('picture', GREY, *both, 'ONNX Runtime'))
    drawn = task.draw_pair(pair, ('ship',))
    assert drawn.shape[1] > 2 * pair.background.shape[1] and drawn.dtype == np.uint8
    assert cv2.imencode('.png', drawn)[0]


@pytest.mark.parametrize(
    ('box', 'version', 'turns', 'follows'),
    [
        ((50, 40, 60, 20, -HALF + 2e-4), 'le90', 2, True),
        ((50, 40, 60, 20, -HALF / 2 + 2e-4), 'le135', 2, True),
        ((50, 40, 60, 20, 2e-4), 'oc', 1, True),
        ((50, 40, 30, 30.01, 0.4), 'le90', 1, True),
        ((50, 40, 60, 20, -HALF + 0.01), 'le90', 2, False),
        ((50, 40, 60, 20, -HALF + 2e-4), 'le90', 1, False),
        ((50, 40, 60, 20, -HALF / 2 + 2e-4), 'le90', 2, False),
        ((50, 40, 30, 31, 0.4), 'le90', 1, False),
        ((50, 40, 30, 30.01, 0.4), 'le90', 4, False),
        ((50, 40, 30, 30.01, 0.4), 'le90', np.inf, False),
    ],
)
def test_tensors_of_boxes_are_compared_in_the_engines_reading_only_where_rounding_decides(
    box, version, turns, follows
):
    reading = (*box[:4], turns) if np.isinf(turns) else turned(box, turns)
    reference, engine = (np.array([[value]], np.float32) for value in (box, reading))
    chosen = readings.read_as(reference, engine, version)
    np.testing.assert_allclose(chosen, engine if follows else reference, atol=0.02 if follows else 0)
    np.testing.assert_allclose(chosen[..., 4], engine[..., 4] if follows else reference[..., 4], atol=1e-6)


@pytest.mark.parametrize(
    ('width', 'wider', 'matches'),
    [(420822.56, 0.0625, True), (16019.816, 0.08, True), (16019.816, 0.8, False), (300.0, 0.02, False)],
)
def test_boxes_without_height_agree_in_their_corners_up_to_a_share_of_their_length(width, wider, matches):
    reference, candidate = (detections((200, 100, side, 0, -1.2)) for side in (width, width + wider))
    assert match(reference, candidate).passed == matches
