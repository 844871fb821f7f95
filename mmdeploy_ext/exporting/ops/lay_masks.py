"""Masks laid over each other, the first on top: a Loop in ONNX, since each one asks what is taken already.

Source of the algorithm: mmdet 2.28.2 `panoptic_fusion_heads/heuristic_fusion_head.py` (`_lay_masks`).
"""

from __future__ import annotations

import torch

from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.operator import Operator

OFFSET = 1000
"""Between the numbers of things, see `runtime/panoptic.py`."""


def _laid(masks: torch.Tensor, labels: torch.Tensor, overlap: float) -> torch.Tensor:
    laid = torch.zeros_like(masks[:, :1].sum(1))
    number = torch.zeros_like(labels[:, :1].sum(1))
    for mask, label in zip(masks.unbind(1), labels.unbind(1), strict=True):
        area, free = mask.float().sum((1, 2)), laid == 0
        shared = (mask & ~free).float().sum((1, 2))
        fits = (area > 0) & (shared / (area + 1e-5) <= overlap)
        number = number + fits.to(number.dtype)
        one = (label + number * OFFSET)[:, None, None]
        laid = torch.where(mask & free & fits[:, None, None], one, laid)
    return laid


LAY_MASKS = register(
    Operator(
        'LayMasks',
        _laid,
        inputs=dict(masks='B n h w', labels='B n'),
        outputs=('laid',),
        example=lambda: (torch.rand(2, 3, 4, 5) > 0.6, torch.tensor([[1, 0, 2], [3, 1, -1]])),
        shapes=lambda masks, labels, overlap: labels.new_empty(
            (masks.shape[0], masks.shape[2], masks.shape[3])
        ),
        body="""
        LayMasks <overlap> (masks, labels) => (laid) {
            go = Constant <value = bool {1}> ()
            least = Constant <value = float {1e-5}> ()
            nothing = Constant <value = float {0}> ()
            none = Constant <value = int64 {0}> ()
            step = Constant <value = int64 {1000}> ()
            most = Constant <value_float: float = @overlap> ()
            first = Constant <value = int64[1] {0}> ()
            sides = Constant <value = int64[2] {1, 2}> ()
            kept = Constant <value = int64[3] {0, 2, 3}> ()
            rows = Shape <start = 1, end = 2> (masks)
            count = Squeeze (rows, first)
            whole = Shape (masks)
            size = Gather <axis = 0> (whole, kept)
            empty = ConstantOfShape <value = int64[1] {0}> (size)
            images = Shape <start = 0, end = 1> (masks)
            zeros = ConstantOfShape <value = int64[1] {0}> (images)
            laid, last = Loop (count, go, empty, zeros) <body = one
                (int64 row, bool again, int64[B,h,w] under, int64[B] number)
                => (bool go_on, int64[B,h,w] above, int64[B] next) {
                    go_on = Identity (again)
                    mask = Gather <axis = 1> (masks, row)
                    label = Gather <axis = 1> (labels, row)
                    free = Equal (under, none)
                    taken = Not (free)
                    common = And (mask, taken)
                    own_pixels = Cast <to = 1> (mask)
                    common_pixels = Cast <to = 1> (common)
                    area = ReduceSum <keepdims = 0> (own_pixels, sides)
                    shared = ReduceSum <keepdims = 0> (common_pixels, sides)
                    bounded = Add (area, least)
                    part = Div (shared, bounded)
                    too_much = Greater (part, most)
                    little = Not (too_much)
                    some = Greater (area, nothing)
                    fits = And (some, little)
                    added = Cast <to = 7> (fits)
                    next = Add (number, added)
                    numbered = Mul (next, step)
                    id = Add (label, numbered)
                    id_map = Unsqueeze (id, sides)
                    fits_map = Unsqueeze (fits, sides)
                    seen = And (mask, free)
                    shown = And (seen, fits_map)
                    above = Where (shown, id_map, under)
                }>
        }""",
    )
)
"""masks (B, n, h, w) bool, labels (B, n) int64 -> (B, h, w) int64: 0 where no mask is, elsewhere label +
number * 1000 of the first mask that fits, of which at most the share `overlap` is taken by those before."""
