"""Instances are matched by class and mask IoU; planted faults fail."""

import dataclasses

import cv2
import numpy as np
import pytest

from mmdeploy_ext.runtime.detections import Instances, bounding_box, run_lengths
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.tasks import boxed_mask, panoptic
from mmdeploy_ext.runtime.tasks.mask import class_iou, match_detections

SIZE = (80, 100)


def discs(*rows):
    """Return instances from rows of x, y, radius, score, label."""
    masks = []
    for x, y, radius, _, _ in rows:
        canvas = np.zeros(SIZE, np.uint8)
        cv2.circle(canvas, (x, y), radius, 1, -1)
        masks.append(canvas.astype(bool))
    stack = np.stack(masks) if masks else np.zeros((0, *SIZE), bool)
    scores = np.array([row[3] for row in rows], np.float32)
    return Instances(stack, scores, np.array([row[4] for row in rows], np.int64))


ROWS = [(30, 30, 20, 0.9, 0), (60, 40, 15, 0.7, 1), (30, 32, 18, 0.5, 0), (70, 60, 12, 0.3, 2)]


def swapped(instances, order):
    return Instances(instances.masks[order], instances.scores[order], instances.labels[order])


def test_equal_instances_match_in_any_order():
    reference = discs(*ROWS)
    row = match_detections('image', reference, swapped(reference, [2, 0, 3, 1]))
    assert row.passed and row.matched == 4 and row.worst_iou == 1.0 and row.worst_score == 0.0


def test_masks_of_0_to_255_match_by_their_values():
    reference = discs(*ROWS)
    graded = dataclasses.replace(reference, masks=reference.masks * np.uint8(200))
    near, half = graded.masks - (graded.masks > 0), graded.masks // 2
    assert match_detections('image', graded, dataclasses.replace(graded, masks=graded.masks.copy())).passed
    assert class_iou(graded, dataclasses.replace(graded, masks=near)).max() == pytest.approx(199 / 200)
    assert not match_detections('image', graded, dataclasses.replace(graded, masks=half)).passed


def faulty(kind):
    instances = discs(*ROWS)
    masks, scores, labels = instances.masks.copy(), instances.scores.copy(), instances.labels.copy()
    if kind == 'mask':
        masks[0] = np.roll(masks[0], 1, axis=1)
    elif kind == 'masks swapped':
        masks[[0, 1]] = masks[[1, 0]]
    elif kind == 'score':
        scores[1] += 0.002
    elif kind == 'label':
        labels[2] = 1
    elif kind == 'missing':
        masks, scores, labels = masks[1:], scores[1:], labels[1:]
    elif kind == 'twice':
        masks, scores, labels = (np.concatenate([part, part[:1]]) for part in (masks, scores, labels))
    elif kind == 'empty':
        masks[:] = False
    elif kind == 'NaN':
        scores[0] = np.nan
    elif kind == 'size':
        masks = masks[:, :-1]
    return Instances(masks, scores, labels)


@pytest.mark.parametrize(
    'kind', ['mask', 'masks swapped', 'score', 'label', 'missing', 'twice', 'empty', 'NaN', 'size']
)
@pytest.mark.parametrize('reverse', [False, True])
def test_every_planted_fault_fails_in_both_directions(kind, reverse):
    sides = [discs(*ROWS), faulty(kind)]
    row = match_detections('image', *(reversed(sides) if reverse else sides))
    assert not row.passed and row.reason


def test_a_pixel_at_the_threshold_does_not_fail_a_small_mask():
    reference = discs((20, 20, 4, 0.9, 0))
    flipped = Instances(reference.masks.copy(), reference.scores, reference.labels)
    flipped.masks[0, 20, 24:26] ^= True
    assert match_detections('image', reference, flipped).passed
    flipped.masks[0, 10, 10] = True
    assert not match_detections('image', reference, flipped).passed


def test_iou_is_that_of_pixels_within_a_class():
    one = discs((30, 30, 20, 0.9, 0), (30, 30, 20, 0.8, 1))
    two = discs((40, 30, 20, 0.9, 0))
    overlap = (one.masks[0] & two.masks[0]).sum() / (one.masks[0] | two.masks[0]).sum()
    np.testing.assert_allclose(class_iou(one, two), [[overlap], [-1]])


@pytest.mark.parametrize(
    'mask',
    [
        np.zeros((4, 5), bool),
        np.ones((4, 5), bool),
        discs(*ROWS).masks[0],
        np.arange(20).reshape(4, 5) % 3 == 0,
        np.arange(20).reshape(4, 5) % 2 == 1,
    ],
)
def test_run_lengths_are_those_of_coco(mask):
    from pycocotools import mask as coco

    rle = dict(size=list(mask.shape), counts=run_lengths(mask))
    packed = coco.frPyObjects(rle, *mask.shape)
    np.testing.assert_array_equal(coco.decode(packed).astype(bool), mask)
    assert sum(rle['counts']) == mask.size
    x1, y1, x2, y2 = bounding_box(mask)
    assert mask[y1:y2, x1:x2].sum() == mask.sum()


def bands(*ids):
    """Return the segments of a map in bands, each of ten pixels, with these values; 9 is in no segment."""
    return Segments.of_map(np.repeat(ids, 10).reshape(-1, 10), 9)


@pytest.mark.parametrize(
    ('ids', 'differences'),
    [
        ((1001, 2002, 3001, 4), (0, 0, 0)),
        ((1001, 9, 2001, 4), (1, 0, 0)),  # the second thing is missing
        ((1001, 9, 3001, 4), (1, 0, 1)),  # and yet it is in the number of the third one
        ((9, 9, 1001, 4), (2, 0, 0)),
        ((2001, 3002, 4001, 4), (0, 0, 3)),
        ((1001, 3002, 2001, 4), (0, 0, 2)),
        ((1001, 2003, 3001, 4), (1, 1, 0)),  # another class
        ((1001, 2002, 3001, 9), (1, 0, 0)),
    ],
)
def test_a_thing_that_one_map_lacks_is_one_difference_whatever_is_behind_it(ids, differences):
    right, other = bands(1001, 2002, 3001, 4), bands(*ids)
    row = panoptic.match_detections('image', right, other)
    assert (row.missing, row.extra, row.outside) == differences
    missing, extra, outside = differences
    row = panoptic.match_detections('image', other, right)
    assert (row.missing, row.extra, row.outside) == (extra, missing, outside)


def test_boxes_masks_and_scores_of_both_have_to_agree():
    results = discs(*ROWS)
    boxes = np.float32([bounding_box(mask) for mask in results.masks])
    results = dataclasses.replace(results, bboxes_xyxy=boxes, mask_scores=results.scores * np.float32(0.9))
    moved = boxes + np.float32([0.1, 0, 0.1, 0])  # an IoU of 0.99: enough for a mask, not for a box
    masks = results.masks & (np.indices(SIZE)[1] != 30)  # an IoU of 0.97
    changes = dict(bboxes_xyxy=moved, masks=masks, mask_scores=results.mask_scores + np.float32(2e-4))
    assert boxed_mask.match_detections('image', results, results).passed
    for name, values in changes.items():
        other = dataclasses.replace(results, **{name: values})
        assert not boxed_mask.match_detections('image', results, other).passed, name
        half = boxed_mask.match_detections('image', results, other, iou_bar=0.9, score_bar=0.05)
        assert half.passed, name
