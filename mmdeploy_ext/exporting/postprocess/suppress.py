"""From scored boxes to results: suppression, the best of them, padding; one for every head that has boxes.

Glossary: B batch, N boxes, n kept rows, K boxes that enter the suppression where their number is limited.
"""

import dataclasses

import torch
from torch import Tensor

from mmdeploy_ext.exporting.ops.nms import batched_nms, class_offsets, nms_of_sorted
from mmdeploy_ext.exporting.ops.soft_nms import NO_CANDIDATE, SOFT_NMS
from mmdeploy_ext.exporting.postprocess.nms_config import SoftNmsConfig, capped
from mmdeploy_ext.exporting.postprocess.sizes import limit

GROUPS = 32
"""Of labels, which NMS looks at one after the other where it keeps all that it may: a box is held against all
better ones that were kept. Measured for 6130 of 8400 boxes of YOLOX-s, ONNX Runtime, one thread: 25 of 293 ms
with one group, 5.2 with 8, 3.3 with 32, 3.4 with 64."""


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Pick rows (B, N) out of values (B, A, D)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


def clip_to(bboxes: Tensor, clip_hw: Tensor, inset: float = 0.0) -> Tensor:
    """Clip boxes (B, N, 4) xyxy to heights and widths (B or 1, 2), less `inset` pixels at the far borders."""
    upper = torch.cat([clip_hw[:, 1:], clip_hw[:, :1]], dim=1).repeat(1, 2)[:, None]
    if inset:
        upper = upper - inset
    return torch.minimum(bboxes.clamp(min=0), upper)


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Greedy suppression within labels, then the best `max_per_img` in descending score order.

    Attributes:
        iou_threshold: suppress above this.
        max_per_img: rows kept per image; -1 keeps all.
        class_agnostic: suppress across labels.
        suppresses: boxes suppress others at all.
        inverted: boxes may end before they begin. Upstream never suppresses these, nor others by them.
        cap: boxes that enter, the best by score; 0 lets all in. With a cap every shape is constant, and the
            suppression is written in standard operators.
        trimmed: rows behind the largest count of the batch are cut off; else there are as many as may be.
        soft: boxes lose score instead; not with a cap.
    """

    iou_threshold: float
    max_per_img: int
    class_agnostic: bool = False
    suppresses: bool = True
    inverted: bool = False
    cap: int = 0
    trimmed: bool = True
    soft: SoftNmsConfig | None = None

    def __call__(
        self, bboxes: Tensor, scores: Tensor, labels: Tensor, candidates: Tensor
    ) -> tuple[Tensor, ...]:
        """Suppress boxes (B, N, 4) xyxy of labels (B, N) int64, 0 or more, and candidates (B, N) bool.

        Scores (B, N) are `NO_CANDIDATE` where a row is none.

        Returns:
            dets (B, n, 5) x1 y1 x2 y2 score, labels (B, n); n is the largest count of the batch, with a cap
            constant; rows that an image does not have are zero with label -1. With a cap also candidates
            (B,) int64, their number before it.
        """
        if self.cap:
            return self._capped(bboxes, scores, labels, candidates)
        if self.soft is not None:
            return self._softened(bboxes, scores, labels, candidates)
        kept = self._kept(bboxes, scores, labels, candidates)
        scores = torch.where(kept, scores, torch.full_like(scores, NO_CANDIDATE))
        best, rows = scores.topk(limit(self.max_per_img, scores.shape[1]), dim=1)
        return self._found(bboxes, best, labels, rows)

    def _separated(self, bboxes: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
        return bboxes if self.class_agnostic else class_offsets(bboxes, labels, candidates)

    def _softened(
        self, bboxes: Tensor, scores: Tensor, labels: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return detections whose scores fell with every better box that they overlap."""
        soft, separated = self.soft, self._separated(bboxes, labels, candidates)
        given = self.max_per_img, self.iou_threshold, soft.sigma, soft.min_score
        rows, best = SOFT_NMS[soft.method](separated, scores, *given)
        return self._found(bboxes, best, labels, rows)

    def _kept(self, bboxes: Tensor, scores: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
        """Return (B, N) bool: the rows that NMS keeps."""
        if not self.suppresses:
            return candidates
        separated = self._separated(bboxes, labels, candidates)
        if self.inverted:  # the operator would put their corners in order
            low, high = separated[..., :2], separated[..., 2:]
            separated = torch.cat([low, torch.maximum(low, high)], dim=2)
        most = self.max_per_img if self.max_per_img > 0 else 2**31 - 1
        grouped = scores[:, None]
        if self.max_per_img <= 0 and not self.class_agnostic:
            groups = torch.arange(GROUPS, device=labels.device)[None, :, None]
            grouped = torch.where(labels[:, None] % GROUPS == groups, grouped, NO_CANDIDATE)
        selected = batched_nms(separated, grouped, self.iou_threshold, most)
        flat_rows = selected[:, 0] * scores.shape[1] + selected[:, 2]
        flat_kept = torch.zeros_like(scores).flatten()
        flat_kept = flat_kept.scatter(0, flat_rows, torch.ones_like(flat_rows, dtype=scores.dtype))
        return flat_kept.reshape(scores.shape) > 0

    def _capped(
        self, bboxes: Tensor, scores: Tensor, labels: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return detections and the number of candidates, of the best `cap` rows, with constant shapes.

        Greedy suppression goes from the best score down, so rows behind the cut change nothing above it.
        """
        separated = self._separated(bboxes, labels, candidates)
        best, rows = scores.topk(self.cap, dim=1)
        if self.suppresses:
            kept = nms_of_sorted(gather_rows(separated, rows), self.iou_threshold)
            best = torch.where(kept, best, torch.full_like(best, NO_CANDIDATE))
        best, order = best.topk(capped(self.cap, self.max_per_img), dim=1)
        rows = rows.gather(1, order)
        return *_padded(bboxes, best, labels, rows), candidates.sum(dim=1)

    def _found(self, bboxes: Tensor, best: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen rows (B, n) with their scores `best`, the padding cut off and blanked."""
        if self.trimmed:
            count = (best > NO_CANDIDATE).sum(dim=1).max()
            best, rows = best[:, :count], rows[:, :count]
        return _padded(bboxes, best, labels, rows)


def _padded(bboxes: Tensor, best: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return dets (B, n, 5) and labels (B, n) of rows; those without a candidate are zero with label -1."""
    bboxes, labels = gather_rows(bboxes, rows), labels.gather(1, rows)
    present = best > NO_CANDIDATE
    dets = torch.cat([bboxes, best[..., None]], dim=2)
    dets = torch.where(present[..., None], dets, torch.zeros_like(dets))
    return dets, torch.where(present, labels, torch.full_like(labels, -1))
