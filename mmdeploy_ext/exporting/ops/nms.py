"""Non-maximum suppression on padded batches: mmcv's in PyTorch, the standard NonMaxSuppression in ONNX.

For engines without NonMaxSuppression (TensorRT-RTX) there is that of a constant number of boxes, in standard
operators that every engine has. Its sequential half, `greedy_keep`, is a Loop in ONNX for any measure of
overlap: no form of a loop is understood by both exporters, so its bodies are written in ONNX.

Glossary: B batch, N boxes, G groups of boxes, K boxes if their number is constant: some tensors (B, K, K) are
in memory.
"""

import torch
from torch import Tensor

from mmdeploy_ext.exporting.ops.operator import Operator, register

NMS_SCORE_THRESHOLD = -0.5
"""Rows that are no candidate carry the score -1; a true score lies in 0..1."""
BELOW_ALL = -1e30
"""Below every coordinate; stays finite when it is multiplied by a label."""
AT_ONCE = 10_000
"""Boxes in one call of mmcv's kernel, which compares each with each: of more boxes the best go first."""


def _keep_best(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """Return the rows that mmcv's NMS keeps, best first, `max_output` at most.

    Boxes behind the last row that is kept change nothing. With LVIS's 1,203 classes a million boxes go in.
    """
    from mmcv.ops import nms

    count, order = len(scores), torch.arange(len(scores), device=scores.device)
    if count > AT_ONCE:
        order = scores.argsort(descending=True, stable=True)
    compared = min(AT_ONCE, count)
    while True:
        rows = order[:compared]
        keep = rows[nms(boxes[rows], scores[rows], iou_threshold)[1]][:max_output]
        if len(keep) >= max_output or compared == count:
            return keep
        compared = min(4 * compared, count)


def _eager(bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: Tensor, max_output: Tensor) -> Tensor:
    selected = []
    for image, (image_boxes, image_scores) in enumerate(zip(bboxes_xyxy, scores.amax(1), strict=True)):
        candidates = torch.nonzero(image_scores > NMS_SCORE_THRESHOLD).squeeze(1)
        if candidates.numel() == 0:
            continue
        boxes, best = image_boxes[candidates], image_scores[candidates]
        keep = candidates[_keep_best(boxes, best, float(iou_threshold), int(max_output))]
        selected.append(torch.stack([torch.full_like(keep, image), torch.zeros_like(keep), keep], dim=1))
    return torch.cat(selected) if selected else bboxes_xyxy.new_zeros((0, 3), dtype=torch.int64)


BATCHED_NMS = register(
    Operator(
        'BatchedNms',
        _eager,
        inputs=dict(bboxes_xyxy='B N 4', scores='B G N', iou_threshold='1', max_output='1'),
        outputs=('selected',),
        example=lambda: (
            torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]]]),
            torch.tensor([[[0.9, 0.8, 0.7]]]),
            torch.tensor([0.5]),
            torch.tensor([100]),
        ),
        shapes=lambda bboxes_xyxy, *_: bboxes_xyxy.new_empty(
            (torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64
        ),
        body=f"""
        BatchedNms (bboxes_xyxy, scores, iou_threshold, max_output) => (selected) {{
            least = Constant <value = float[1] {{{NMS_SCORE_THRESHOLD}}}> ()
            selected = NonMaxSuppression (bboxes_xyxy, scores, max_output, iou_threshold, least)
        }}""",
    )
)
"""IoU does not care which axis is called x, so `xyxy` needs no reordering. The settings are tensors, because
opset 11 makes no constant of an attribute."""


def batched_nms(bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """Return (n, 3) int64 rows of image, group (0 in PyTorch) and box that greedy NMS of each image keeps.

    Boxes that may not suppress each other must not overlap.

    Args:
        bboxes_xyxy: (B, N, 4) float32, see `class_offsets`.
        scores: (B, G, N) float32 of each group of boxes; `NMS_SCORE_THRESHOLD` or less marks a row that is no
            candidate, or of another group.
        iou_threshold: suppress above this.
        max_output: keep at most this many per image; with several groups not below `N`.
    """
    return BATCHED_NMS(bboxes_xyxy, scores, torch.tensor([iou_threshold]), torch.tensor([max_output]))


def class_offsets(bboxes_xyxy: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
    """Shift the boxes (B, N, 4) of each class apart, so that one NMS suppresses within classes only.

    Of labels (B, N) int64 and candidates (B, N) bool; only these count for the largest coordinate. Rounded
    exactly as mmcv's `batched_nms` rounds.
    """
    visible = torch.where(candidates[..., None], bboxes_xyxy, torch.full_like(bboxes_xyxy, BELOW_ALL))
    largest = visible.flatten(1).max(dim=1, keepdim=True)[0]
    return bboxes_xyxy + (labels.to(bboxes_xyxy.dtype) * (largest + 1))[..., None]


def pairwise_iou(bboxes_xyxy: Tensor) -> Tensor:
    """Return (B, K, K) the intersection over union of all pairs of (B, K, 4), rounded as mmcv rounds it.

    Two boxes without an area give NaN, which exceeds no threshold, as in mmcv.
    """
    left, top, right, bottom = bboxes_xyxy.unbind(dim=2)
    areas = (right - left) * (bottom - top)
    width = _shared(left, right)
    overlap = width * _shared(top, bottom)
    return overlap / (areas[:, :, None] + areas[:, None, :] - overlap)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """Return (B, K, K) how much of an axis two intervals share."""
    start = torch.maximum(low[:, :, None], low[:, None, :])
    return (torch.minimum(high[:, :, None], high[:, None, :]) - start).clamp(min=0)


def nms_of_sorted(bboxes_xyxy: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes (B, K) bool greedy suppression above a threshold keeps.

    They are (B, K, 4) float32, in the order of their scores, the best first; boxes that may not suppress each
    other must not overlap (`class_offsets`).
    """
    ranks = torch.arange(bboxes_xyxy.shape[1], device=bboxes_xyxy.device)
    before = ranks[None, :] < ranks[:, None]
    return greedy_keep_batch((pairwise_iou(bboxes_xyxy) > iou_threshold) & before)


def _greedy_keep(suppresses: torch.Tensor) -> torch.Tensor:
    keep = torch.ones(suppresses.shape[0], dtype=torch.bool, device=suppresses.device)
    for row in range(suppresses.shape[0]):
        if keep[row]:
            keep = keep & ~suppresses[row]
    return keep


greedy_keep = register(
    Operator(
        'GreedyKeep',
        _greedy_keep,
        inputs=dict(suppresses='N N'),
        outputs=('keep',),
        example=lambda: (torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool),),
        shapes=lambda suppresses: suppresses.new_empty((suppresses.shape[0],)),
        body="""
        GreedyKeep (suppresses) => (keep) {
            rows = Shape <start = 0, end = 1> (suppresses)
            yes = Constant <value = bool[1] {1}> ()
            everything = Expand (yes, rows)
            first = Constant <value = int64[1] {0}> ()
            count = Squeeze (rows, first)
            keep = Loop (count, , everything) <body = step (int64 row, bool go, bool[N] kept)
                => (bool go_on, bool[N] left) {
                    go_on = Identity (go)
                    targets = Gather <axis = 0> (suppresses, row)
                    alive = Gather <axis = 0> (kept, row)
                    hit = And (targets, alive)
                    spared = Not (hit)
                    left = And (kept, spared)
                }>
        }""",
    )
)
"""(N, N) bool -> (N,) bool: the rows that survive when each surviving row removes its targets, from the first
row on. Row i removes column j; only columns behind the row (j > i) may be True. Opset 15 or later (Shape with
a range)."""


def _greedy_keep_batch(suppressed_by: torch.Tensor) -> torch.Tensor:
    keep = 1 - suppressed_by.amax(dim=2)[:, None]
    while True:
        next_keep = 1 - (suppressed_by * keep).amax(dim=2)[:, None]
        if torch.equal(next_keep, keep):
            return keep
        keep = next_keep


GREEDY_KEEP_BATCH = register(
    Operator(
        'GreedyKeepBatch',
        _greedy_keep_batch,
        inputs=dict(suppressed_by='B K K'),
        outputs=('keep',),
        example=lambda: (torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]]),),
        shapes=lambda suppressed_by: torch.empty_like(suppressed_by[:, :1]),
        body="""
        GreedyKeepBatch (suppressed_by) => (keep) {
            one = Constant <value = float {1}> ()
            none = Constant <value = float {0}> ()
            yes = Constant <value = bool {1}> ()
            targets = GlobalMaxPool (suppressed_by)
            targets_row = Transpose <perm = [0, 2, 1]> (targets)
            first = Sub (one, targets_row)
            keep = Loop (, yes, first) <body = turn (int64 number, bool go, float[B,1,K] kept)
                => (bool go_on, float[B,1,K] left) {
                    hits = Mul (suppressed_by, kept)
                    hit = GlobalMaxPool (hits)
                    hit_row = Transpose <perm = [0, 2, 1]> (hit)
                    left = Sub (one, hit_row)
                    change = Sub (left, kept)
                    size = Abs (change)
                    largest = ReduceMax <keepdims = 0> (size)
                    go_on = Greater (largest, none)
                }>
        }""",
    )
)
"""Rows are compared with the kept rows that suppress them until nothing changes, which is the greedy choice:
the first row is right from the start, row t after t turns at most, and chains of suppression are short. The
text needs no matrix product and no reduction over an axis, so that it holds for every opset from 11 on."""


def greedy_keep_batch(suppressed_by: torch.Tensor) -> torch.Tensor:
    """Return `greedy_keep` (B, K) bool of a batch of constant size, in operators that TensorRT has.

    In `suppressed_by` (B, K, K) bool row j is suppressed by column i; only columns before it (i < j) may be.
    """
    return GREEDY_KEEP_BATCH(suppressed_by.to(torch.float32))[:, 0] > 0
