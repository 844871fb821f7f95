"""Each proof tries the matching of its task on results that differ: a matching that is too lax is refused."""

import dataclasses
import functools

import numpy as np
import pytest

from mmdeploy_ext.proving.tasks import bbox2d, bbox3d, boxed_mask, mask
from mmdeploy_ext.proving.tasks.blind_spots import blind_spots
from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.detections3d import Detections3D

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
    assert blind_spots(task, results) == []
    assert blind_spots(task, results[:0]) is None
    lax = functools.partial(module.match_detections, score_bar=0.5)
    monkeypatch.setattr(module, 'match_detections', lax)
    assert 'scores 0.01 higher' in blind_spots(task, results)


def test_a_matching_that_accepts_everything_shows(monkeypatch):
    (module, results), match = RESULTS['bbox2d'], bbox2d.match_detections
    monkeypatch.setattr(module, 'match_detections', lambda image, one, other, **_: match(image, one, one))
    assert blind_spots('bbox2d', results) == ['a missing result', 'scores 0.01 higher', 'other labels']


def test_a_fact_about_all_results_may_be_a_list_of_as_many_entries():
    @dataclasses.dataclass(frozen=True)
    class Named(Instances):
        names: tuple[str, ...] = ()

    results = Named(MASKS, SCORES, LABELS, None, names=('cell',) * len(SCORES))
    assert blind_spots('mmdeploy_ext.proving.tasks.mask', results) == []
