"""Masks at the size of the original image, in the graph, equal to `runtime/pasted_masks.py`.

A Loop makes one mask at a time, so that only one takes the memory of float32; the results are bool.
Glossary: B batch, n detections of the fullest image, or a constant of the file, R masks, m their side, s
pixels along an axis, h, w size of the result.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import nn

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.families.common.mask_heads import side_of
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Stage, TensorSpec
from mmdeploy_ext.upstream.operators.operator import Operator, register


def check(threshold: float, options: Options) -> None:
    """Raise UsageError for pasting with `--max-candidates`, or at a threshold that all pixels reach."""
    if not options.get('paste_masks'):
        return
    if options.get('max_candidates'):
        raise UsageError(
            '--paste-masks: the size of the masks depends on ori_shape, so it cannot be combined with '
            '--max-candidates'
        )
    if threshold <= 0:
        raise UsageError(
            f'--paste-masks: mask_thr_binary is {threshold:g}; expected more than 0, the value outside of '
            'masks'
        )


def mask_output(model: nn.Module, options: Options, batch: int | str, rows: int | str) -> TensorSpec:
    if options.get('paste_masks'):
        return pasted_output(batch, rows)
    side = side_of(model.roi_head)
    meaning = 'probabilities for the predicted class, relative to the box; zero where dets is padding'
    return TensorSpec('masks', 'float32', (batch, rows, side, side), meaning, compare='detections')


def pasted_output(batch: int | str, rows: int | str) -> TensorSpec:
    meaning = 'masks of the instances in the original image; h, w are the largest of the batch'
    return TensorSpec('masks', 'bool', (batch, rows, 'h', 'w'), meaning, compare='detections')


def size_inputs(options: Options, batch: int | str) -> tuple[TensorSpec, ...]:
    """Return the spec of `ori_shape`; () without pasting."""
    if not options.get('paste_masks'):
        return ()
    meaning = 'height and width of the original images; masks have this size'
    return (TensorSpec('ori_shape', 'int64', (batch, 2), meaning, 'pixel', positive=True),)


def with_pasting(stages: list[Stage], options: Options, threshold: float) -> list[Stage]:
    """Append pasting to stages if `--paste-masks` is given; `threshold` is inclusive."""
    if not options.get('paste_masks'):
        return stages
    *before, last = stages
    names = tuple('box_masks' if name == 'masks' else name for name in last.outputs)
    last = dataclasses.replace(last, outputs=names, varying=('dets', 'box_masks'))
    inputs = 'dets', 'scale_factor', 'ori_shape', 'box_masks'
    return [*before, last, Stage('paste', Paste(threshold), inputs, ('masks',))]


def pasting_weights(
    low: torch.Tensor, high: torch.Tensor, size: torch.Tensor, cells: torch.Tensor
) -> torch.Tensor:
    """Compute `PASTE_WEIGHTS` in PyTorch."""
    pixels = torch.arange(int(size), dtype=low.dtype, device=low.device)
    low, high = low[:, None], high[:, None]
    place = (pixels + 0.5 - low) / (high - low) * 2 - 1
    place = torch.where(place.isinf(), torch.zeros_like(place), place)
    place = ((place + 1) * float(len(cells)) - 1) / 2
    hat = (1 - (place[..., None] - cells).abs()).clamp(min=0)
    inside = (pixels >= low.floor() - 1) & (pixels < high.ceil() + 1)
    return torch.where(inside[..., None] & ~hat.isnan(), hat, torch.zeros_like(hat))


def _paste_weights(op: Any) -> Callable[..., Any]:
    def body(low, high, size, cells):
        pixels = op.Cast(op.Range(0, op.Squeeze(size, [0]), 1), to=TensorProto.FLOAT)
        starts = op.Unsqueeze(low, [1])
        ends = op.Unsqueeze(high, [1])
        place = (pixels + 0.5 - starts) / (ends - starts) * 2.0 - 1.0
        bounded = op.Where(op.IsInf(place), 0.0, place)
        side = op.Cast(op.Shape(cells), to=TensorProto.FLOAT)
        cell = ((bounded + 1.0) * side - 1.0) / 2.0
        hat = op.Max(1.0 - op.Abs(op.Unsqueeze(cell, [2]) - cells), 0.0)
        inside = op.And(op.Not(pixels < op.Floor(starts) - 1.0), pixels < op.Ceil(ends) + 1.0)
        counts = op.And(op.Unsqueeze(inside, [2]), op.Not(op.IsNaN(hat)))
        weights = op.Where(counts, hat, 0.0)
        return weights

    return body


PASTE_WEIGHTS = register(
    Operator(
        'PasteWeights',
        pasting_weights,
        inputs=dict(low='R', high='R', size='1', cells='m'),
        outputs=('weights',),
        example=lambda: (
            torch.tensor([1.5, 0.0]),
            torch.tensor([6.0, 3.0]),
            torch.tensor([8]),
            torch.arange(4.0),
        ),
        shapes=lambda low, high, size, cells: low.new_empty(
            (low.shape[0], torch.library.get_ctx().new_dynamic_size(), cells.shape[0])
        ),
        body=_paste_weights,
    )
)
"""low, high (R,) ends of boxes, size (1,) int64, cells (m,) 0.0 .. m - 1 -> (R, s, m) weights of cells."""


def pasted_masks(
    rows: torch.Tensor, masks: torch.Tensor, columns: torch.Tensor, threshold: float
) -> torch.Tensor:
    boxes = zip(rows, masks, columns, strict=True)
    return torch.stack([line @ mask @ column.T >= threshold for line, mask, column in boxes])


def _paste_masks(op: Any) -> Callable[..., Any]:
    from onnxscript import graph

    def body(rows, masks, columns, threshold: float):
        least = op.Constant(value_float=threshold)
        turned = op.Transpose(columns, perm=[0, 2, 1])

        @graph()
        def paste(row, again):
            line = op.Gather(rows, row, axis=0)
            mask = op.Gather(masks, row, axis=0)
            column = op.Gather(turned, row, axis=0)
            image = op.MatMul(op.MatMul(line, mask), column) >= least
            return op.Identity(again), image

        count = op.Squeeze(op.Shape(masks, start=0, end=1), [0])
        pasted = op.Loop(count, True, body=paste)
        return pasted

    return body


PASTE_MASKS = register(
    Operator(
        'PasteMasks',
        pasted_masks,
        inputs=dict(rows='R h m', masks='R m m', columns='R w m'),
        outputs=('pasted',),
        example=lambda: (torch.rand(2, 5, 4), torch.rand(2, 4, 4), torch.rand(2, 6, 4)),
        shapes=lambda rows, masks, columns, threshold: rows.new_empty(
            (rows.shape[0], rows.shape[1], columns.shape[1]), dtype=torch.bool
        ),
        body=_paste_masks,
    )
)
"""rows (R, h, m), masks (R, m, m), columns (R, w, m) -> (R, h, w) bool."""


class Paste(nn.Module):
    """Masks in the frame of boxes to masks of images."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(
        self, dets: torch.Tensor, scale_factor: torch.Tensor, ori_shape: torch.Tensor, box_masks: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return masks (B, n, h, w) bool; h, w are the largest of `ori_shape` (B, 2).

        `dets` (B, n, 5) are `x1 y1 x2 y2 score` divided by `scale_factor` (B, 4) `w h w h`, input / original;
        `box_masks` (B, n, m, m) in 0..1 are in the frame of the box, zero in padding.
        """
        scale = scale_factor[:, None]
        boxes = dets[..., :4] * scale / scale  # as mmdet does, which rounds
        # a row before the first: a Loop without turns, and a reshape to none, have no size
        boxes = torch.cat([torch.zeros_like(dets[:, :1, :4].sum(1, keepdim=True)), boxes], dim=1)
        masks = torch.cat([torch.zeros_like(box_masks[:, :1].sum(1, keepdim=True)), box_masks], dim=1)
        corners, flat = boxes.flatten(0, 1), masks.flatten(0, 1)
        size, side = ori_shape.amax(dim=0), box_masks.shape[-1]
        cells = torch.arange(side, dtype=dets.dtype, device=dets.device)
        rows = PASTE_WEIGHTS(corners[:, 1], corners[:, 3], size[:1], cells)
        columns = PASTE_WEIGHTS(corners[:, 0], corners[:, 2], size[1:], cells)
        pasted = PASTE_MASKS(rows, flat, columns, self.threshold)
        pasted = pasted.reshape(*masks.shape[:2], *pasted.shape[1:])
        return (tap('masks', pasted[:, 1:]),)
