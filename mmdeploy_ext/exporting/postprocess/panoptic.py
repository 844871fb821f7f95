"""Panoptic maps in a graph: the modules that fuse masks as mmdet does.

Glossary: B batch, Q queries, C classes, S classes of stuff, n instances, h, w size of the map.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.graphs.script import ZERO
from mmdeploy_ext.spec.tensors import TensorSpec
from mmdeploy_ext.upstream.operators.operator import Operator, register

OFFSET = 1000
"""Factor of a thing's number in a map."""
FAINTEST = -80.0
"""Smallest logit: exp(80) / score is finite in float32."""


def _laid(masks: torch.Tensor, labels: torch.Tensor, overlap: float) -> torch.Tensor:
    laid = torch.zeros_like(masks[:, :1].sum(1))
    number = torch.zeros_like(labels[:, :1].sum(1))
    for mask, label in zip(masks.unbind(1), labels.unbind(1), strict=True):
        area, free = mask.float().sum((1, 2)), laid == 0
        shared = (mask & ~free).float().sum((1, 2))
        fits = (area > 0) & (shared / (area + 1e-5) <= overlap)
        number = number + fits.to(number.dtype)
        segment = (label + number * OFFSET)[:, None, None]
        laid = torch.where(mask & free & fits[:, None, None], segment, laid)
    return laid


def _lay_masks(op: Any) -> Callable[..., Any]:
    from onnxscript import graph

    def body(masks, labels, overlap: float):
        most = op.Constant(value_float=overlap)
        images = op.Shape(masks, start=0, end=1)
        size = op.Gather(op.Shape(masks), [0, 2, 3], axis=0)
        empty = op.ConstantOfShape(size, value=ZERO)
        zeros = op.ConstantOfShape(images, value=ZERO)

        @graph()
        def lay(row, again, under, number):
            mask = op.Gather(masks, row, axis=1)
            label = op.Gather(labels, row, axis=1)
            free = under == 0
            common = op.And(mask, op.Not(free))
            area = op.ReduceSum(op.Cast(mask, to=TensorProto.FLOAT), [1, 2], keepdims=0)
            shared = op.ReduceSum(op.Cast(common, to=TensorProto.FLOAT), [1, 2], keepdims=0)
            fits = op.And(area > 0.0, op.Not(shared / (area + 1e-5) > most))
            added = op.Cast(fits, to=TensorProto.INT64)
            next_number = number + added
            segment = op.Unsqueeze(label + next_number * 1000, [1, 2])
            shown = op.And(op.And(mask, free), op.Unsqueeze(fits, [1, 2]))
            return op.Identity(again), op.Where(shown, segment, under), next_number

        count = op.Squeeze(op.Shape(masks, start=1, end=2), [0])
        laid, _last = op.Loop(count, True, empty, zeros, body=lay)
        return laid

    return body


LAY_MASKS = register(
    Operator(
        'LayMasks',
        _laid,
        inputs=dict(masks='B n h w', labels='B n'),
        outputs=('laid',),
        example=lambda: (torch.rand(2, 3, 4, 5) > 0.6, torch.tensor([[1, 0, 2], [3, 1, -1]])),
        shapes=lambda masks, labels, overlap: torch.empty_like(masks[:, 0], dtype=labels.dtype),
        body=_lay_masks,
    )
)
"""(masks (B, n, h, w) bool, labels (B, n) int64, overlap) -> (B, h, w) int64: label + number * 1000.

A pixel belongs to the first mask that has it and fits; 0 without one. A mask fits if it has pixels, and
earlier masks have taken at most the share `overlap` of them. Source: mmdet 2.28.2 `heuristic_fusion_head.py`
(`_lay_masks`).
"""


def map_output(batch: int | str) -> tuple[TensorSpec, ...]:
    meaning = (
        f'segments: class + number * {OFFSET}, the number of things from 1 on and 0 of stuff; the number of '
        f'classes where there is none'
    )
    return (TensorSpec('panoptic', 'int32', (batch, 'h', 'w'), meaning, compare='detections'),)


def ids_of(labels: torch.Tensor, accepted: torch.Tensor, things: int) -> torch.Tensor:
    """Return class + number * `OFFSET` (B, n) int64; `accepted` (B, n) things count from 1."""
    number = (accepted & (labels < things)).to(torch.int64)
    return labels + number.cumsum(1) * number * OFFSET


def pixels(inside: torch.Tensor) -> torch.Tensor:
    """Count the pixels (B, n) float32 of masks `inside` (B, n, h, w) bool, exact below 2 ** 24."""
    return inside.to(torch.float32).sum((2, 3))


def _classes_of(facts: Any) -> tuple[int, int]:
    if facts.num_classes >= OFFSET:
        raise ConfigError(
            f'num_classes={facts.num_classes}: a panoptic map stores class + number * {OFFSET}, so it '
            f'supports fewer than {OFFSET} classes'
        )
    return facts.num_classes, facts.num_things


class QueryFusion(nn.Module):
    """Every pixel belongs to the confident query with the highest score for it.

    Confident: the best class is not the last (no class), and its softmax score exceeds `object_mask_thr`.
    """

    def __init__(self, facts: Any) -> None:
        """Read `num_classes` (things and stuff), `num_things`, and mmdet's settings.

        `object_mask_thr`: least score; `iou_thr`: least ratio of a query's pixels to its mask's pixels;
        `filter_low_score`: drop pixels outside of their query's mask.
        """
        super().__init__()
        self.classes, self.things = _classes_of(facts)
        self.least, self.share = facts.object_mask_thr, facts.iou_thr
        self.filters = facts.filter_low_score

    def forward(self, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return maps (B, h, w) int32; of equal scores the first query has the pixel.

        Args:
            logits: logits of the classes (B, Q, C + 1), float32; the last column is no class.
            values: logits of the masks (B, Q, h, w), float32.
        """
        scores, labels = logits.softmax(2).max(2)
        confident = (labels != self.classes) & (scores > self.least)
        inside = values >= 0
        doubts = torch.where(confident, 1 / scores, torch.full_like(scores, torch.inf))
        owner = (doubts[..., None, None] * (1 + (-values.clamp(min=FAINTEST)).exp())).argmin(1, keepdim=True)
        queries = torch.arange(logits.shape[1], device=logits.device)
        owned = owner == queries[None, :, None, None]
        area, original = pixels(owned), pixels(inside)
        accepted = confident & (area > 0) & (original > 0) & (area / original.clamp(min=1) >= self.share)
        ids = torch.where(
            accepted, ids_of(labels, accepted, self.things), torch.full_like(labels, self.classes)
        )
        flat = owner.flatten(1)
        panoptic = ids.gather(1, flat).reshape(owner[:, 0].shape)
        if self.filters:
            sure = (owned & inside).to(torch.float32).amax(1) > 0
            panoptic = torch.where(sure, panoptic, torch.full_like(panoptic, self.classes))
        return panoptic.to(torch.int32)


class InstanceFusion(nn.Module):
    """Instances, the best first, over a semantic map."""

    def __init__(self, facts: Any) -> None:
        """Read `num_classes` (things and stuff), `num_things`, and mmdet's settings.

        `mask_overlap`: largest share of a mask under better masks; `stuff_area_limit`: least pixels of a
        class of stuff.
        """
        super().__init__()
        self.classes, self.things = _classes_of(facts)
        self.overlap, self.least = facts.mask_overlap, facts.stuff_area_limit

    def forward(self, masks: torch.Tensor, labels: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """Return maps (B, h, w) int32.

        Args:
            masks: (B, n, h, w) bool, in descending order of scores; empty for padding.
            labels: (B, n) int64 of things.
            semantic: (B, S + 1, h, w) float32 logits of stuff, as of mmdet's `PanopticFPNHead`; the last
                class is no stuff.
        """
        laid = LAY_MASKS(masks, labels, self.overlap)
        stuff, free = semantic.argmax(1, keepdim=True), laid == 0
        kinds = torch.arange(semantic.shape[1], device=laid.device)
        area = pixels((stuff == kinds[None, :, None, None]) & free[:, None])
        small = (area < self.least).gather(1, stuff.flatten(1)).reshape(laid.shape)
        ground = torch.where(small, torch.full_like(laid, self.classes), stuff[:, 0] + self.things)
        return torch.where(free, ground, laid).to(torch.int32)
