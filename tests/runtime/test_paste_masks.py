"""Masks in the frame of boxes pasted by numpy against mmdet's `get_seg_masks`."""

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead

from mmdeploy_ext.families.common.runtime.pasted_masks import paste

SIZE = (60, 80)


def by_mmdet(masks, boxes, threshold=0.5):
    """Return mmdet's masks (n, h, w) of probabilities (n, m, m)."""
    head = FCNMaskHead(num_convs=0, in_channels=1, conv_out_channels=1, num_classes=1)
    given = masks[:, None], torch.from_numpy(boxes), torch.zeros(len(boxes), dtype=torch.int64)
    cfg = type('Cfg', (), dict(mask_thr_binary=threshold))
    (found,) = head.get_seg_masks(*given, cfg, SIZE, torch.ones(4), True)
    return np.stack(found)


def test_masks_equal_mmdets_pixel_by_pixel():
    draw = np.random.default_rng(0)
    low = draw.uniform(-4, 58, (200, 2))  # mmdet raises where a box is outside
    boxes = np.concatenate([low, low + draw.uniform(5, 70, (200, 2))], 1).astype(np.float32)
    coarse = draw.random((200, 7, 7), np.float32).repeat(4, 1).repeat(4, 2)
    masks = (coarse + draw.random((200, 28, 28), np.float32)) / 2
    wanted = by_mmdet(masks, boxes)
    assert 0 < wanted.mean() < 1
    assert np.count_nonzero(paste(masks, boxes, *SIZE, 0.5) != wanted) <= 2


def test_boxes_at_the_borders_without_an_area_or_outside_are_as_mmdets():
    boxes = [
        [0, 0, 80, 60],
        [79.9, 10, 80, 40],
        [5, 5, 5, 25],
        [5, 7, 40, 7],
        [-9, -9, 3, 2],
        [10, 10, 11, 11],
    ]
    boxes = np.array(boxes, np.float32)
    masks = np.random.default_rng(1).random((len(boxes), 28, 28), np.float32)
    np.testing.assert_array_equal(paste(masks, boxes, *SIZE, 0.5), by_mmdet(masks, boxes))


def test_masks_below_a_threshold_of_0_are_mmdets_of_0_to_255():
    boxes = np.array([[3, 4, 50, 40], [-9, -9, 30, 20], [20, 5, 79.5, 59]], np.float32)
    masks = np.random.default_rng(2).random((len(boxes), 28, 28), np.float32)
    pasted, wanted = paste(masks, boxes, *SIZE, -1), by_mmdet(masks, boxes, -1)
    assert pasted.dtype == wanted.dtype == np.uint8 and wanted.max() > 200
    assert np.abs(pasted.astype(int) - wanted).max() <= 1 and (pasted != wanted).mean() < 1e-3
