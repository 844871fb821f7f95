"""Non-maximum suppression of rotated boxes, mmcv's `nms_rotated`, in operators that every engine has.

Glossary: B batch, N boxes of an image, n kept boxes.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from mmdeploy_ext.graphs.script import part
from mmdeploy_ext.runtime import bird_eye
from mmdeploy_ext.upstream.operators.nms import BELOW_ALL
from mmdeploy_ext.upstream.operators.operator import Operator, node_of, register
from mmdeploy_ext.upstream.operators.rotated_iou import PAIR_IOU

ROWS = 16
SLACK = 1e-3
"""Bounds grow by this share of their size, and by this length."""
LOST_DIGITS = 1e-6
"""Bounds grow by this share of the distance from 0: coordinates are rounded."""


def _eager(boxes: Tensor, bounds: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    keep = torch.zeros_like(valid)
    for image_boxes, image_valid, image_keep in zip(boxes, valid, keep, strict=True):
        rows = torch.nonzero(image_valid).squeeze(1)
        kept = bird_eye.rotated_nms(image_boxes[rows].cpu().numpy(), iou_threshold)
        image_keep[rows[torch.from_numpy(kept).to(rows)]] = True
    return keep


def _rotated_keep_body(op: Any) -> Callable[..., Any]:
    from onnxscript import graph

    pair_iou = node_of(PAIR_IOU)

    @part(op)
    def suppressed(alive, hits, begin, count):
        @graph()
        def remove(row, go, kept):
            row_kept = op.Gather(kept, op.Unsqueeze(row, [0]) + begin, axis=1)
            hit = op.And(op.Gather(hits, row, axis=1), row_kept)
            return op.Identity(go), op.And(kept, op.Not(hit))

        return op.Loop(count, None, alive, body=remove)

    def body(boxes, bounds, valid, iou_threshold: float):
        threshold = op.Constant(value_float=iou_threshold)
        rows = op.Constant(value_ints=[ROWS])
        left = op.Gather(bounds, [0], axis=1)
        top = op.Gather(bounds, [1], axis=1)
        right = op.Gather(bounds, [2], axis=1)
        bottom = op.Gather(bounds, [3], axis=1)
        count = op.Shape(valid, start=1, end=2)
        images = op.Shape(valid, start=0, end=1)
        ranks = op.Range(0, op.Squeeze(count, [0]), 1)
        blocks = op.Squeeze((count + (rows - 1)) / rows, [0])

        @graph()
        def block(number, go, alive):
            begin = number * rows
            end = op.Min(begin + rows, count)
            row_left = op.Transpose(op.Slice(left, begin, end, [2]), perm=[0, 2, 1])
            row_top = op.Transpose(op.Slice(top, begin, end, [2]), perm=[0, 2, 1])
            row_right = op.Transpose(op.Slice(right, begin, end, [2]), perm=[0, 2, 1])
            row_bottom = op.Transpose(op.Slice(bottom, begin, end, [2]), perm=[0, 2, 1])
            in_columns = op.And(row_left <= right, row_right >= left)
            in_rows = op.And(row_top <= bottom, row_bottom >= top)
            row_ranks = op.Range(op.Squeeze(begin, [0]), op.Squeeze(end, [0]), 1)
            is_behind = ranks > op.Unsqueeze(row_ranks, [1])
            alive_down = op.Unsqueeze(op.Slice(alive, begin, end, [1]), [2])
            candidates = op.And(op.And(alive_down, op.Unsqueeze(alive, [1])), is_behind)
            pairs = op.Transpose(op.NonZero(op.And(candidates, op.And(in_columns, in_rows))), perm=[1, 0])
            first = op.GatherND(op.Slice(boxes, begin, end, [1]), op.Gather(pairs, [0, 1], axis=1))
            second = op.GatherND(boxes, op.Gather(pairs, [0, 2], axis=1))
            overlaps = op.Cast(pair_iou(first, second) >= threshold, to=TensorProto.FLOAT)
            block_rows = end - begin
            nothing = op.ConstantOfShape(op.Concat(images, block_rows, count, axis=0))
            hits = op.Cast(op.ScatterND(nothing, pairs, overlaps), to=TensorProto.BOOL)
            return op.Identity(go), suppressed(alive, hits, begin, op.Squeeze(block_rows, [0]))

        keep = op.Loop(blocks, None, valid, body=block)
        return keep

    return body


ROTATED_KEEP = register(
    Operator(
        'RotatedKeep',
        _eager,
        inputs=dict(boxes='B N 5', bounds='B 4 N', valid='B N'),
        outputs=('keep',),
        example=lambda: (
            torch.tensor([[[0.0, 0, 4, 2, 0], [0.5, 0, 4, 2, 0], [9, 9, 2, 2, 0]]]),
            torch.tensor([[[-2.0, -1.5, 8], [-1, -1, 8], [2, 2.5, 10], [1, 1, 10]]]),
            torch.tensor([[True, True, True]]),
        ),
        shapes=lambda boxes, bounds, valid, iou_threshold: torch.empty_like(valid),
        body=_rotated_keep_body,
    )
)
"""(boxes, bounds, valid, iou_threshold) -> kept (B, N) bool; boxes and valid as in `rotated_keep`.

bounds (B, 4, N): left, top, right and bottom around each box, a little wider; PyTorch ignores them.
"""


def rotated_keep(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Return the boxes that greedy suppression keeps in each image: (B, N) bool.

    Args:
        boxes: (B, N, 5) float32 centre x, y, width, height, angle in radians from x towards y, by descending
            score; shifted apart by class.
        valid: (B, N) bool; other rows are not kept.
        iou_threshold: above 0.
    """
    cos, sin = boxes[..., 4:].cos().abs(), boxes[..., 4:].sin().abs()
    width, height = boxes[..., 2:3].abs(), boxes[..., 3:4].abs()
    reach = torch.cat([width * cos + height * sin, width * sin + height * cos], 2) / 2
    centres = boxes[..., :2]
    reach = reach + SLACK * (reach + 1) + LOST_DIGITS * centres.abs()
    bounds = torch.cat([centres - reach, centres + reach], 2).transpose(1, 2)
    return ROTATED_KEEP(boxes, bounds, valid, iou_threshold)


def rotated_class_offsets(boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return rotated boxes (B, N, 5), shifted apart by class, as mmcv's `batched_nms` does.

    Centres move by the label (B, N) int64 times (largest coordinate of a centre + largest side + 1) of the
    image's `valid` (B, N) boxes.
    """
    visible = torch.where(valid[..., None], boxes[..., :4], torch.full_like(boxes[..., :4], BELOW_ALL))
    largest = visible[..., :2].amax(dim=(1, 2)) + visible[..., 2:].amax(dim=(1, 2))
    offsets = labels.to(boxes.dtype) * (largest + 1)[:, None]
    return torch.cat([boxes[..., :2] + offsets[..., None], boxes[..., 2:]], dim=2)
