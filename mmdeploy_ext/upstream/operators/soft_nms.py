"""Soft non-maximum suppression: scores of boxes that overlap a chosen one decay; a Loop in ONNX.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/nms.cpp` (Bodla et al., ICCV 2017).
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.graphs.script import Body
from mmdeploy_ext.upstream.operators.operator import Operator, register

NO_CANDIDATE = -1.0
"""Score of a row that is no candidate, was chosen, or fell below `min_score`."""
METHODS = 'naive', 'linear', 'gaussian'


def _body(method: str) -> Body:
    is_naive, is_linear = method == 'naive', method == 'linear'

    def soft_nms(op: Any) -> Callable[..., Any]:
        from onnxscript import graph

        def body(bboxes_xyxy, scores, most: int, iou_threshold: float, sigma: float, min_score: float):
            threshold = op.Constant(value_float=iou_threshold)
            spread = op.Constant(value_float=sigma)
            least = op.Constant(value_float=min_score)
            left, top, right, bottom = op.Split(bboxes_xyxy, [1, 1, 1, 1], axis=2)
            x1 = op.Squeeze(left, [2])
            y1 = op.Squeeze(top, [2])
            x2 = op.Squeeze(right, [2])
            y2 = op.Squeeze(bottom, [2])
            area = (x2 - x1) * (y2 - y1)

            @graph()
            def turn(number, again, s):
                score, row = op.TopK(s, [1])
                width = op.Min(op.GatherElements(x2, row, axis=1), x2) - op.Max(
                    op.GatherElements(x1, row, axis=1), x1
                )
                height = op.Min(op.GatherElements(y2, row, axis=1), y2) - op.Max(
                    op.GatherElements(y1, row, axis=1), y1
                )
                shared = op.Max(width, 0.0) * op.Max(height, 0.0)
                iou = shared / (op.GatherElements(area, row, axis=1) + area - shared)
                if is_naive:
                    weight = op.Where(iou >= threshold, 0.0, 1.0)
                elif is_linear:
                    weight = op.Where(iou >= threshold, 1.0 - iou, 1.0)
                else:
                    weight = op.Exp(op.Neg(iou * iou / spread))
                lower = s * weight
                stays = op.And(lower >= least, s > -1.0)
                left_over = op.Where(stays, lower, -1.0)
                decayed = op.ScatterElements(left_over, row, score * 0.0 + -1.0, axis=1)
                return op.Identity(again), decayed, op.Squeeze(row, [1]), op.Squeeze(score, [1])

            _end, all_rows, all_best = op.Loop(op.Constant(value_int=most), True, scores, body=turn)
            rows = op.Transpose(all_rows, perm=[1, 0])
            best = op.Transpose(all_best, perm=[1, 0])
            return rows, best

        return body

    return soft_nms


def _operator(method: str) -> Operator:
    def eager(
        bboxes_xyxy: Tensor, scores: Tensor, most: int, iou_threshold: float, sigma: float, min_score: float
    ) -> tuple[Tensor, Tensor]:
        from mmcv.ops import soft_nms

        rows = scores.new_zeros((scores.shape[0], most), dtype=torch.int64)
        best = scores.new_full((scores.shape[0], most), NO_CANDIDATE)
        for image, (boxes, values) in enumerate(zip(bboxes_xyxy, scores, strict=True)):
            candidates = torch.nonzero(values > NO_CANDIDATE).squeeze(1)
            if candidates.numel():
                dets, order = soft_nms(
                    boxes[candidates], values[candidates], iou_threshold, sigma, min_score, method=method
                )
                count = min(len(order), most)
                rows[image, :count], best[image, :count] = candidates[order[:count]], dets[:count, 4]
        return rows, best

    name = f'SoftNms{method.title()}'
    return Operator(
        name,
        eager,
        inputs=dict(bboxes_xyxy='B N 4', scores='B N'),
        outputs=('rows', 'best'),
        example=lambda: (torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1.9]]]), torch.tensor([[0.9, 0.8]])),
        shapes=lambda bboxes_xyxy, scores, most, *_: (
            scores.new_empty((scores.shape[0], most), dtype=torch.int64),
            scores.new_empty((scores.shape[0], most)),
        ),
        body=_body(method),
    )


SOFT_NMS = {method: register(_operator(method)) for method in METHODS}
"""Method of mmcv -> operator: (boxes (B, N, 4) xyxy, scores (B, N), settings) -> rows, scores.

Settings: `most` results per image, and mmcv's `iou_threshold`, `sigma` and `min_score`. Returns the chosen
rows (B, most) int64 and their decayed scores (B, most), descending, `NO_CANDIDATE` for padding.
"""
