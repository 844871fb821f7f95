"""Panoptic maps and their segments: read from a graph, matched in a proof."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.families.query.masks import facts_of, max_per_image
from mmdeploy_ext.runtime.panoptic import Segments, segments_of
from mmdeploy_ext.runtime.tasks.panoptic import match_detections

CLASSES = 6


def test_a_map_is_its_segments():
    panoptic = np.full((4, 6), CLASSES, np.int32)
    panoptic[:2], panoptic[2:, :2], panoptic[2:, 2:4] = 5, 1001, 2001
    found = Segments.of_map(panoptic, CLASSES)
    assert found.ids.tolist() == [5, 1001, 2001] and found.labels.tolist() == [5, 1, 1]
    assert (found.to_map(CLASSES) == panoptic).all()
    assert [entry['id'] for entry in found.to_json()] == [5, 1001, 2001]
    with pytest.raises(ModelFileError, match='1007'):
        segments_of(dict(panoptic=panoptic[None] + (panoptic == 5) * 1002), CLASSES)


def test_segments_of_another_number_class_or_place_are_not_matched():
    panoptic = np.full((40, 60), CLASSES, np.int32)
    panoptic[:20], panoptic[20:, :30] = 4, 1001
    right = Segments.of_map(panoptic, CLASSES)
    assert match_detections('map', right, right).matched == 2
    for rows, columns, value in ((20, 30, 1002), (20, 1, CLASSES), (10, 30, 2001), (20, 30, 8001)):
        other = panoptic.copy()
        other[20 : 20 + rows, :columns] = value
        pair = right, Segments.of_map(other, CLASSES)
        assert not match_detections('map', *pair).passed and not match_detections('map', *pair[::-1]).passed
    assert match_detections('map', *pair, iou_bar=0.9).passed  # numbers may differ in half precision


def test_thresholds_are_the_configs_or_those_of_mmdet():
    given = dict(object_mask_thr=0.3, iou_thr=0.4, filter_low_score=True, max_per_image=7)
    for test_cfg, expected in (({}, (0.8, 0.8, False, 100)), (given, tuple(given.values()))):
        fusion = SimpleNamespace(num_classes=6, num_things_classes=4, test_cfg=test_cfg)
        facts = facts_of(fusion)
        found = facts.object_mask_thr, facts.iou_thr, facts.filter_low_score, max_per_image(fusion)
        assert found == expected and (facts.num_classes, facts.num_things) == (6, 4)
