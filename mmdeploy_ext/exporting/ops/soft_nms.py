"""Soft non-maximum suppression: scores of boxes that overlap a chosen one decay; a Loop in ONNX.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/nms.cpp` (Bodla et al., ICCV 2017). Results are chosen by descending
score, so that the Loop makes as many turns as there may be results. Glossary: B batch, N boxes.
"""

import torch
from torch import Tensor

from mmdeploy_ext.exporting.ops.operator import Operator, register

NO_CANDIDATE = -1.0
"""Score of a row that is no candidate, was chosen before, or fell below `min_score`."""
WEIGHTS = dict(
    naive='weight = Where (reaches, none, unit)',
    linear='rest = Sub (unit, iou)\nweight = Where (reaches, rest, unit)',
    gaussian='square = Mul (iou, iou)\npart = Div (square, sigma)\npower = Neg (part)\nweight = Exp (power)',
)
"""Method of mmcv -> the ONNX text of the factor of a score, from the overlap with the chosen box."""
BODY = """
NAME <most, iou_threshold, sigma, min_score> (bboxes_xyxy, scores) => (rows, best) {
    turns = Constant <value_int: int = @most> ()
    threshold = Constant <value_float: float = @iou_threshold> ()
    sigma = Constant <value_float: float = @sigma> ()
    least = Constant <value_float: float = @min_score> ()
    none = Constant <value = float {0}> ()
    unit = Constant <value = float {1}> ()
    gone = Constant <value = float {-1}> ()
    single = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {2}> ()
    go = Constant <value = bool {1}> ()
    four = Constant <value = int64[4] {1, 1, 1, 1}> ()
    left, top, right, bottom = Split <axis = 2> (bboxes_xyxy, four)
    x1 = Squeeze (left, last)
    y1 = Squeeze (top, last)
    x2 = Squeeze (right, last)
    y2 = Squeeze (bottom, last)
    width = Sub (x2, x1)
    height = Sub (y2, y1)
    area = Mul (width, height)
    end, all_rows, all_best = Loop (turns, go, scores) <body =
        turn (int64 number, bool again, float[B,N] s) =>
        (bool go_on, float[B,N] decayed, int64[B] chosen, float[B] value) {
            go_on = Identity (again)
            top_score, row = TopK (s, single)
            ax1 = GatherElements <axis = 1> (x1, row)
            ay1 = GatherElements <axis = 1> (y1, row)
            ax2 = GatherElements <axis = 1> (x2, row)
            ay2 = GatherElements <axis = 1> (y2, row)
            own = GatherElements <axis = 1> (area, row)
            low_x = Max (ax1, x1)
            low_y = Max (ay1, y1)
            high_x = Min (ax2, x2)
            high_y = Min (ay2, y2)
            raw_w = Sub (high_x, low_x)
            raw_h = Sub (high_y, low_y)
            w = Max (raw_w, none)
            h = Max (raw_h, none)
            shared = Mul (w, h)
            both = Add (own, area)
            joined = Sub (both, shared)
            iou = Div (shared, joined)
            reaches = GreaterOrEqual (iou, threshold)
            WEIGHT
            lower = Mul (s, weight)
            enough = GreaterOrEqual (lower, least)
            present = Greater (s, gone)
            stays = And (enough, present)
            left_over = Where (stays, lower, gone)
            minus = Mul (top_score, none)
            mark = Add (minus, gone)
            decayed = ScatterElements <axis = 1> (left_over, row, mark)
            chosen = Squeeze (row, single)
            value = Squeeze (top_score, single)
        }>
    rows = Transpose <perm = [1, 0]> (all_rows)
    best = Transpose <perm = [1, 0]> (all_best)
}"""
"""The ONNX text; NAME and WEIGHT stand for those of a method."""


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
        body=BODY.replace('NAME', name).replace('WEIGHT', WEIGHTS[method]),
    )


SOFT_NMS = {method: register(_operator(method)) for method in WEIGHTS}
"""Method of mmcv ('naive', 'linear', 'gaussian') -> operator. It takes boxes (B, N, 4) xyxy float32, scores
(B, N) float32, `most`, the number of results per image, and mmcv's `iou_threshold`, `sigma` and `min_score`;
N is at least 1. It returns the chosen rows (B, most) int64 and their decayed scores (B, most), which descend;
if an image has fewer results, the remaining scores are `NO_CANDIDATE`, and their rows mean nothing. Two boxes
without an area at one place have the IoU 0 / 0: 'gaussian' gives the second one the score NaN in mmcv, and
removes it in ONNX."""
