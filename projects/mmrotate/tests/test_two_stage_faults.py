"""Faults in the graphs of two-stage detectors that the comparison of their results has to show."""

import dataclasses

import pytest
import torch

from mm2onnx_mmrotate import angles
from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.task import match_detections
from mm2onnx_mmrotate.two_stage import boxes, coders
from mm2onnx_mmrotate.two_stage.runtime import detections
from mmdeploy_ext.exporting.postprocess import suppression
from test_two_stage import Metadata, by_mmrotate, detector, run


def other_layers(monkeypatch, **changes):
    """Pool rotated regions by layers with other settings."""
    pool = boxes.pool_rotated

    def changed(maps, regions, images, levels, layers):
        layers = [type(layer)(**dict(settings_of(layer), **changes)) for layer in layers]
        return pool(maps, regions, images, levels, layers)

    monkeypatch.setattr(boxes, 'pool_rotated', changed)


def settings_of(layer):
    names = ('output_size', 'spatial_scale', 'sampling_ratio', 'aligned', 'clockwise')
    return {name: getattr(layer, name) for name in names}


def angle_sign(monkeypatch):
    other_layers(monkeypatch, clockwise=False)


def sampling_grid(monkeypatch):
    other_layers(monkeypatch, sampling_ratio=1)


def half_cell(monkeypatch):
    other_layers(monkeypatch, aligned=False)


def no_class_offset(monkeypatch):
    monkeypatch.setattr(suppression, 'rotated_class_offsets', lambda boxes, labels, valid: boxes)


def sides_exchanged(monkeypatch):
    decode = coders.CODERS['rotated_delta']
    monkeypatch.setitem(
        coders.CODERS, 'rotated_delta', lambda *args: decode(*args)[..., torch.tensor([0, 1, 3, 2, 4])]
    )


def regions_exchanged(monkeypatch):
    """Pool regions whose sides are exchanged: the features of another box, on the same level."""
    pool = boxes.pool_rotated
    order = torch.tensor([0, 1, 3, 2, 4])

    def changed(maps, regions, *rest):
        return pool(maps, regions[:, order], *rest)

    monkeypatch.setattr(boxes, 'pool_rotated', changed)


def unclipped_centres(monkeypatch):
    monkeypatch.setitem(
        coders.CODERS,
        'rotated_delta',
        lambda xp, regions, rows, coder, clip_hw: coder.boxes(xp, regions, rows, 0),
    )


def other_version(monkeypatch):
    """Wrap angles as the version le135 does."""
    decode = coders.CODERS['rotated_delta']
    monkeypatch.setitem(
        coders.CODERS,
        'rotated_delta',
        lambda xp, regions, rows, coder, clip_hw: decode(
            xp, regions, rows, dataclasses.replace(coder, version='le135'), clip_hw
        ),
    )


def wrap_off(monkeypatch):
    """Wrap angles into 0 to pi in place of -pi / 2 to pi / 2."""
    monkeypatch.setitem(angles.VERSIONS, 'le90', 0.0)


def upright_iou(monkeypatch):
    """Suppress boxes by the overlap of boxes of the same sides that are not turned."""
    keep = suppression.rotated_keep

    def of_upright(boxes, *rest):
        return keep(torch.cat([boxes[..., :4], torch.zeros_like(boxes[..., 4:])], -1), *rest)

    monkeypatch.setattr(suppression, 'rotated_keep', of_upright)


FAULTS = (
    angle_sign,
    sampling_grid,
    half_cell,
    no_class_offset,
    sides_exchanged,
    regions_exchanged,
    unclipped_centres,
    other_version,
    wrap_off,
    upright_iou,
)


def matches():
    """Return the comparison of both images' results, of the graph's modules and of mmrotate."""
    family, model = detector('oriented_rcnn', 'le90')
    outputs = run(family, model, 'full')
    found = detections(Metadata(family, model, 'full'), outputs, outputs)
    pairs = zip(by_mmrotate(model, 'le90'), found, strict=True)
    return [match_detections('a picture', *pair) for pair in pairs]


def test_the_right_graph_passes():
    assert all(row.passed for row in matches())


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_does_not_pass(monkeypatch, fault):
    fault(monkeypatch)
    assert not all(row.passed for row in matches())


def test_exchanged_sides_alone_do_not_pass():
    """A rectangle with exchanged sides is another one, unless it is a square."""
    _, model = detector('oriented_rcnn', 'le90')
    results, _ = by_mmrotate(model, 'le90')
    exchanged = dataclasses.replace(results, boxes=results.boxes[:, [0, 1, 3, 2, 4]])
    assert isinstance(exchanged, RotatedDetections)
    assert not match_detections('a picture', results, exchanged).passed
