"""A check for authors of tasks: a matching that is too lax calls results equal that differ."""

import functools

import numpy as np
import pytest

from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.tasks import bbox2d, bbox3d, boxed_mask, mask
from mmdeploy_ext.runtime.tasks.check import check_task

SCORES, LABELS = np.linspace(0.2, 0.9, 12, dtype=np.float32), np.arange(12) % 3
BOXES = np.stack([np.arange(12) * 30.0, np.zeros(12), np.arange(12) * 30.0 + 20, np.full(12, 20.0)], 1)
BOXES = BOXES.astype(np.float32)
MASKS = np.stack([np.arange(48)[None] // 4 == index for index in range(12)]).repeat(6, 1)
RESULTS = dict(
    bbox2d=(bbox2d, Detections(BOXES, SCORES, LABELS)),
    bbox3d=(bbox3d, Detections3D(np.tile(BOXES, (1, 3))[:, :9], SCORES, LABELS)),
    mask=(mask, Instances(MASKS, SCORES, LABELS, None)),
    boxed_mask=(boxed_mask, Instances(MASKS, SCORES, LABELS, BOXES)),
)


@pytest.mark.parametrize('task', RESULTS)
def test_the_tasks_of_this_package_overlook_nothing_and_a_bar_that_is_too_large_shows(task, monkeypatch):
    module, results = RESULTS[task]
    assert check_task(task, results) == []
    lax = functools.partial(module.match_detections, score_bar=0.5)
    monkeypatch.setattr(module, 'match_detections', lax)
    assert check_task(task, results) == ['other scores']
