"""Rotated IoU and NMS in standard operators against mmcv's CPU kernels, rounding included."""

import math

import numpy as np
import pytest
import torch
from mmcv.ops import box_iou_rotated, nms_rotated

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.runtime import rotated_loops
from mmdeploy_ext.runtime.bird_eye import rotated_nms
from mmdeploy_ext.upstream.operators.operator import operators_as
from mmdeploy_ext.upstream.operators.rotated_iou import PAIR_IOU
from mmdeploy_ext.upstream.operators.rotated_nms import rotated_keep
from toy_graphs import run_file

PAIRS = 1000
"""Of each kind; there are ten kinds."""


def random_boxes(count, seed, extent=1000.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * extent
    sizes = 1.5 * torch.exp(torch.rand(count, 2, generator=generator) * math.log(300))
    angles = (torch.rand(count, 1, generator=generator) - 0.5) * math.pi
    return torch.cat([centres, sizes, angles], 1)


def changed(boxes, along=0.0, across=0.0, sizes=(1.0, 1.0), angle=0.0, upright=False):
    """Return boxes moved by shares of their own sides, with scaled sides and turned."""
    x, y, width, height, turn = boxes.unbind(1)
    cos, sin = turn.cos(), turn.sin()
    x, y = (x + along * width * cos - across * height * sin, y + along * width * sin + across * height * cos)
    turn = torch.zeros_like(turn) if upright else turn + angle
    return torch.stack([x, y, width * sizes[0], height * sizes[1], turn], 1)


def pairs_of_boxes():
    """Return kind -> two tensors (PAIRS, 5)."""
    boxes = random_boxes(PAIRS, 0)
    other = changed(boxes, 0.3, -0.2, (1.3, 0.8), 0.4)
    turned = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    almost = boxes + torch.tensor([1e-4, 0, 0, 0, 0])
    upright = changed(boxes, upright=True)
    return {
        'overlapping': (boxes, other),
        'equal': (boxes, boxes.clone()),
        'equal, turned by a quarter': (boxes, turned),
        'almost equal': (boxes, almost),
        'touching at an edge': (boxes, changed(boxes, along=1.0)),
        'nested': (boxes, changed(boxes, sizes=(0.5, 0.5))),
        'nested at an edge': (boxes, changed(boxes, along=0.25, sizes=(0.5, 0.5))),
        'upright': (upright, changed(other, upright=True)),
        'without width': (boxes, changed(boxes, sizes=(0.0, 1.0))),
        'thin': (boxes, changed(boxes, sizes=(1e-6, 1.0))),
    }


class PairIou(torch.nn.Module):
    def forward(self, boxes, others):
        return PAIR_IOU(boxes, others)


class Keep(torch.nn.Module):
    def forward(self, boxes, valid):
        return rotated_keep(boxes, valid, 0.1)


def exported(module, args, names, axes, exporter='torchscript', opset=17):
    with operators_as('standard'):
        return export_module(
            module.eval(),
            args,
            exporter=exporter,
            opset=opset,
            input_names=names,
            output_names=('result',),
            dynamic={name: dict(enumerate(axes)) for name in names},
        )


@pytest.fixture(scope='module')
def pairs():
    return pairs_of_boxes()


def test_the_exported_iou_of_ten_thousand_pairs_is_mmcvs_to_the_bit(pairs):
    first, second = (torch.cat([pair[side] for pair in pairs.values()]) for side in (0, 1))
    assert len(first) == 10_000
    model = exported(PairIou(), (first[:5], second[:5]), ('boxes', 'others'), 'P')
    (iou,) = run_file(model, (first.numpy(), second.numpy()), ('boxes', 'others'))
    np.testing.assert_array_equal(iou, box_iou_rotated(first, second, aligned=True).numpy())


def crowd(count, seed):
    """Return boxes with copies and almost equal copies among them."""
    boxes = random_boxes(count, seed, extent=300.0)
    copies = boxes[: count // 3]
    steps = torch.tensor([0.0, 1e-4, 1.0])[torch.arange(len(copies)) % 3]
    boxes[count - len(copies) :] = copies + steps[:, None] * torch.tensor([1.0, -1.0, 0.5, 0.5, 0.01])
    return boxes[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


def kept_by_mmcv(boxes, valid):
    rows = torch.nonzero(valid).squeeze(1)
    keep = torch.zeros_like(valid)
    if len(rows):
        keep[rows[nms_rotated(boxes[rows], -torch.arange(len(rows)).float(), 0.1)[1]]] = True
    return keep


@pytest.mark.parametrize('exporter', ['torchscript', pytest.param('dynamo', marks=pytest.mark.matrix)])
def test_the_exported_suppression_of_a_batch_keeps_what_mmcv_keeps(exporter):
    boxes, valid = crowd(40, 0).reshape(2, 20, 5), torch.ones(2, 20, dtype=torch.bool)
    model = exported(Keep(), (boxes, valid), ('boxes', 'valid'), 'BN', exporter, opset=18)
    for batch, count in ((1, 0), (1, 1), (3, 16), (2, 17), (2, 150)):
        boxes = torch.stack([crowd(count, 10 + image) for image in range(batch)])
        valid = torch.rand(batch, count, generator=torch.Generator().manual_seed(3)) > 0.2
        (keep,) = run_file(model, (boxes.numpy(), valid.numpy()), ('boxes', 'valid'))
        wanted = [kept_by_mmcv(*image) for image in zip(boxes, valid, strict=True)]
        np.testing.assert_array_equal(keep, torch.stack(wanted).numpy())
        np.testing.assert_array_equal(rotated_keep(boxes, valid, 0.1), torch.stack(wanted).numpy())


def test_the_loops_without_pytorch_are_mmcvs_to_the_bit(pairs):
    first, second = (torch.cat([pair[side] for pair in pairs.values()]) for side in (0, 1))
    shared = rotated_loops.overlaps(first.numpy(), second.numpy())
    areas = (first[:, 2] * first[:, 3]).numpy(), (second[:, 2] * second[:, 3]).numpy()
    has_area = (areas[0] >= rotated_loops.NO_AREA) & (areas[1] >= rotated_loops.NO_AREA)
    iou = np.divide(shared, areas[0] + areas[1] - shared, out=np.zeros_like(shared), where=has_area)
    np.testing.assert_array_equal(iou, box_iou_rotated(first, second, aligned=True).numpy())
    for count in (0, 1, 400):
        boxes = crowd(count, 20)
        wanted = kept_by_mmcv(boxes, torch.ones(count, dtype=torch.bool))
        np.testing.assert_array_equal(rotated_nms(boxes.numpy(), 0.1), torch.nonzero(wanted)[:, 0].numpy())
