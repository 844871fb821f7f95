"""Planted faults of graphs of queries: each gives results that the proof's matching refuses."""

import functools

import pytest
import torch

from mmdeploy_ext.exporting.ops import deformable_attention
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.proof.tasks.bbox2d import match_detections
from mmdeploy_ext.runtime.query.model import detections
from projects.mmdet_plugin.query import networks, padding, postprocess
from toy_query import images, options_of, run_stages, seeded

FAMILY = FAMILIES['query']


def altered(owner, name, change):
    """Return what replaces a function by `change(the function)`, in a monkeypatch."""
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


def sampled(change):
    """Return a fault of where attention samples: `change` of reference points and offsets."""

    def faulty(right):
        return lambda points, offsets, shapes: right(*change(points, offsets), shapes)

    return altered(deformable_attention, 'sampling_locations', faulty)


def swapped(tensor):
    """Return queries (B, Q, ...) with the first two of each four in each other's place."""
    order = torch.arange(tensor.shape[1]).unflatten(0, (-1, 4))[:, [1, 0, 2, 3]].flatten()
    return tensor[:, order]


def boxes_of_another_query(right):
    return lambda self, image, shape, scale, logits, boxes: right(
        self, image, shape, scale, logits, swapped(boxes)
    )


def padded_whole(right):
    """Boxes relative to the input, padding and all."""
    return lambda self, image, shape, *others: right(self, image, shape * 0, *others)


def of_the_first_image(right):
    return lambda self, image, shape, *others: right(self, image, shape[:1].expand_as(shape), *others)


EVERY = {
    'a query swapped': altered(postprocess.FullForm, 'forward', boxes_of_another_query),
    'boxes relative to padding': altered(postprocess.FullForm, 'forward', padded_whole),
    'padding ignored': altered(padding.Level, 'inside', lambda right: lambda self: right(self) * 0 + 1),
    'padding of the first image': altered(networks.QueryNetwork, 'forward', of_the_first_image),
    'positions of padding, too': altered(
        padding.SinePositions, '_along', lambda right: lambda self, one: right(self, whole(one))
    ),
    'classes as queries': altered(
        torch, 'div', lambda right: lambda index, classes, **_: right(index, classes + 1, **_)
    ),
}
DEFORMABLE = {
    'reference points of another level': sampled(lambda points, offsets: (points.roll(1, 2), offsets)),
    'offsets scaled': sampled(lambda points, offsets: (points, offsets * 1.05)),
    'offsets of another level': sampled(lambda points, offsets: (points, offsets.roll(1, 3))),
    'ratios ignored': altered(padding.Level, 'ratios', lambda right: lambda self: right(self) * 0 + 1),
    'weights of another map': altered(
        deformable_attention, 'shares', lambda right: lambda logits, heads: right(logits, heads).roll(4, -1)
    ),
}
TWO_STAGE = {
    'sides of another level': altered(networks, 'SIDE', lambda right: 2 * right),
    'proposals at the border': altered(networks, 'BORDER', lambda right: 0.15),
    'another period': altered(networks, 'TEMPERATURE', lambda right: 1000),
}
CASES = [
    *(('detr', fault) for fault in EVERY if fault != 'classes as queries'),
    *(('plain', fault) for fault in EVERY | DEFORMABLE),
    ('refine', 'reference points of another level'),
    *(('two_stage', fault) for fault in TWO_STAGE),
]


def whole(one):
    """Return rows of a map as if all of them showed the image."""
    return padding.Line(one.inside * 0 + 1, one.count * 0 + one.cells, one.place, one.cells)


@functools.cache
def reference(kind):
    return FAMILY.reference_detections(seeded(kind), images(2), True)


def judged(kind):
    """Return whether every image of a batch passes; contents of images differ."""
    feeds = FAMILY.feeds(images(2), True)
    found = detections(None, run_stages(FAMILY.stages(seeded(kind), options_of()), feeds), feeds)
    rows = [match_detections('image', *pair) for pair in zip(reference(kind), found, strict=True)]
    return all(row.passed for row in rows)


@pytest.mark.parametrize('kind', ['detr', 'plain', 'refine', 'two_stage'])
def test_a_graph_without_a_fault_passes(kind):
    assert judged(kind)


@pytest.mark.parametrize(('kind', 'fault'), CASES)
def test_a_planted_fault_is_refused(kind, fault, monkeypatch):
    reference(kind)  # before the fault
    (EVERY | DEFORMABLE | TWO_STAGE)[fault](monkeypatch)
    assert not judged(kind)
