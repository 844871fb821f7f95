"""Planted faults of graphs of queries: each gives results that the proof's matching refuses."""

import functools
import types

import pytest
from query_faulty import DEFORMABLE, EVERY, TWO_STAGE

from marking import in_suite
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.parts.runtime.padded_results import detections
from mmdeploy_ext.proving.tasks.bbox2d import match_detections
from toy_query import images, options_of, run_stages, seeded

FULL = types.SimpleNamespace(form='full', options={})
FAMILY = FAMILIES['query']


CASES = [
    *(('detr', fault) for fault in EVERY if fault != 'classes as queries'),
    *(('plain', fault) for fault in EVERY | DEFORMABLE),
    ('refine', 'reference points of another level'),
    *(('two_stage', fault) for fault in TWO_STAGE),
]


@functools.cache
def reference(kind):
    return FAMILY.reference_detections(seeded(kind), images(2), True)


def judged(kind):
    """Return whether every image of a batch passes; contents of images differ."""
    feeds = FAMILY.feeds(images(2), True)
    found = detections(FULL, run_stages(FAMILY.stages(seeded(kind), options_of()), feeds), feeds)
    rows = [match_detections('image', *pair) for pair in zip(reference(kind), found, strict=True)]
    return all(row.passed for row in rows)


@pytest.mark.parametrize('kind', in_suite(['detr', 'plain', 'refine', 'two_stage'], 'detr', 'refine'))
def test_a_graph_without_a_fault_passes(kind):
    assert judged(kind)


@pytest.mark.suite(
    'plain-a query swapped', 'plain-ratios ignored', 'plain-offsets scaled',
    'plain-boxes relative to padding', 'detr-padding ignored', 'refine-reference points of another level',
)  # fmt: skip
@pytest.mark.parametrize(('kind', 'fault'), CASES)
def test_a_planted_fault_is_refused(kind, fault, monkeypatch):
    reference(kind)  # before the fault
    (EVERY | DEFORMABLE | TWO_STAGE)[fault](monkeypatch)
    assert not judged(kind)
