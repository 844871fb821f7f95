"""Faults of detectors of queries: each is planted in what a graph is traced from, by a monkeypatch."""

import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from mmdeploy_ext.exporting.ops import attention
from mmdeploy_ext.families.parts import padding, query_networks
from mmdeploy_ext.families.query import postprocess
from planting import altered


def sampled(change):
    """Return a fault of where attention samples: `change` of reference points and offsets."""

    def faulty(right):
        return lambda points, offsets, shapes: right(*change(points, offsets), shapes)

    return altered(attention, 'sampling_locations', faulty)


def a_cell_off(right):
    """Samples one cell of their map further, to the right and down."""
    return lambda points, offsets, shapes: right(points, offsets, shapes) + 1 / shapes.flip(1)[:, None]


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


def whole(one):
    """Return rows of a map as if all of them showed the image."""
    return padding.Line(one.inside * 0 + 1, one.count * 0 + one.cells, one.place, one.cells)


EVERY = {
    'a query swapped': altered(postprocess.QueryFullForm, 'forward', boxes_of_another_query),
    'boxes relative to padding': altered(postprocess.QueryFullForm, 'forward', padded_whole),
    'padding ignored': altered(padding.PaddedMap, 'inside', lambda right: lambda self: right(self) * 0 + 1),
    'padding of the first image': altered(query_networks.QueryNetwork, 'forward', of_the_first_image),
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
    'samples one cell off': altered(attention, 'sampling_locations', a_cell_off),
    'offsets of another level': sampled(lambda points, offsets: (points, offsets.roll(1, 3))),
    'ratios ignored': altered(padding.PaddedMap, 'ratios', lambda right: lambda self: right(self) * 0 + 1),
    'weights of another map': altered(
        attention, 'point_weights', lambda right: lambda logits, heads: right(logits, heads).roll(4, -1)
    ),
}
TWO_STAGE = {
    'sides of another level': altered(query_networks, 'SIDE', lambda right: 2 * right),
    'proposals at the border': altered(query_networks, 'BORDER', lambda right: 0.15),
    'another period': altered(query_networks, 'TEMPERATURE', lambda right: 1000),
}
