"""Dense heads in numpy: post-processing of the forms 'decode' and 'raw', equal to 'full'.

Glossary: B batch, L levels, a priors of a cell, A priors of a level or of all, C classes, H, W network input
in pixels, h, w size of a level's maps, n results of the fullest image (or `--max-candidates`).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.common.runtime.dense import decode_raw, rows_per_level
from mmdeploy_ext.runtime.box_coders import VOTE_SPREAD, VOTES_ABOVE
from mmdeploy_ext.runtime.dense_facts import PRIOR_CHOICES, DenseFacts
from mmdeploy_ext.runtime.detections import Detections, Rows, check_cap, nms, results_from_padded
from mmdeploy_ext.runtime.geometry import ious

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata

RUNNERS = {'full': 'with_postprocess', 'decode': 'no_topk_nms', 'raw': 'no_topk_nms'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections of each image, best first, in pixels of the network input over `scale_factor`.

    Args:
        metadata: metadata of the file: `form`, `postprocess` and, for 'full', `options`.
        outputs: by name; 'full': `dets` (B, n, 5) x1 y1 x2 y2 score and `labels` (B, n) int64, -1 for
            padding; 'decode': `boxes` (B, A, 4) xyxy, pixels, `scores` (B, A, C), score factors (B, A) named
            `head.factor`, and `level_sizes` (L,) unless `head.maps_by_stride`; 'raw': see `decode_raw`.
        feeds: `input` (B, 3, H, W), and optionally `img_shape` (B or 1, 2), h, w to clip to (0: input size),
            `scale_factor` (B or 1, 4) `w h w h`, not 0, and `border` (B or 1, 2), padding above and left,
            pixels. 'full' reads none.
    """
    if metadata.form == 'full':
        results = results_from_padded(outputs)
        check_cap(metadata, outputs, results)
        return results
    facts = metadata.postprocess
    if metadata.form == 'raw':
        outputs = decode_raw(outputs, *feeds['input'].shape[2:], facts)
    return decoded_detections(facts, outputs, feeds)


def decoded_detections(facts: DenseFacts, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    batch, _, height, width = feeds['input'].shape
    sizes = rows_per_level(outputs, height, width, facts)
    priors = DecodedPriors(outputs['boxes'], outputs['scores'], outputs.get(facts.head.factor))
    img_shape = np.broadcast_to(feeds.get('img_shape', np.zeros(2, np.float32)), (batch, 2))
    clip_hw = np.where(img_shape > 0, img_shape, np.float32([height, width]))
    scale_factor = np.broadcast_to(feeds.get('scale_factor', np.ones(4, np.float32)), (batch, 4))
    border = np.broadcast_to(feeds.get('border', np.zeros(2, np.float32)), (batch, 2))
    return [
        postprocess_image(priors[image], sizes, clip_hw[image], scale_factor[image], facts, border[image])
        for image in range(batch)
    ]


@dataclasses.dataclass(frozen=True)
class DecodedPriors(Rows):
    """Decoded priors of one image, of one level or of all; of a batch all arrays have B as the first axis.

    Attributes:
        boxes: (A, 4) xyxy, pixels of the network input, not clipped.
        scores: (A, C) class scores.
        factors: (A,) score factors, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    factors: np.ndarray | None

    def ranks(self, facts: DenseFacts) -> np.ndarray:
        if self.factors is None:
            return self.scores
        product = self.scores * self.factors[:, None]
        return np.sqrt(np.maximum(product, 0)) if facts.head.root else product

    def ranks_of_priors(self, facts: DenseFacts) -> np.ndarray:
        """Return the numbers (A,) that rank priors of a level (`Head.choose`)."""
        choose = facts.head.choose
        if choose == 'factor_priors' and self.factors is not None:
            return self.factors
        return (self.scores if choose == 'class_priors' else self.ranks(facts)).max(1)


def postprocess_image(
    priors: DecodedPriors,
    level_sizes: Sequence[int],
    clip_hw: Sequence[float],
    scale_factor: np.ndarray,
    facts: DenseFacts,
    border: Sequence[float] = (0.0, 0.0),
) -> Detections:
    """Return the detections of one image as the 'full' graph and mmdet's `get_bboxes` choose them.

    Args:
        priors: decoded priors, level after level.
        level_sizes: number of priors of each level.
        clip_hw: h, w to clip to, pixels of the network input.
        scale_factor: (4,) `w h w h`, input / original.
        facts: `nms_pre` and `max_per_img` of 0 or less limit nothing.
        border: padding above and left of the image, pixels.
    """
    boxes, head = priors.boxes, facts.head
    if facts.clip_border:
        upper = np.asarray([clip_hw[1], clip_hw[0]] * 2, np.float32) - np.float32(head.clip_inset)
        boxes = np.minimum(np.maximum(boxes, np.float32(0)), upper)
    if head.bordered:
        boxes = boxes - np.asarray([border[1], border[0]] * 2, np.float32)
    boxes = boxes / np.asarray(scale_factor, np.float32)
    priors = dataclasses.replace(priors, boxes=boxes)
    starts = np.concatenate([[0], np.cumsum(level_sizes)])
    levels = [_kept(priors[start:end], facts) for start, end in itertools.pairwise(starts)]
    candidates = [_candidates(level, facts) for level in levels]
    boxes, scores, labels = (np.concatenate(columns) for columns in zip(*candidates, strict=True))
    if head.suppresses:
        separated = boxes
        if len(boxes) and not facts.class_agnostic:
            separated = boxes + (labels.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]
        rows = nms(separated, scores, facts.iou_threshold, facts.max_per_img)
    else:
        rows = np.argsort(-scores, kind='stable')
    if facts.max_per_img > 0:
        rows = rows[: facts.max_per_img]
    results = Detections(boxes[rows], scores[rows], labels[rows].astype(np.int64))
    return _voted(results, levels, facts) if head.votes else results


def num_candidates(priors: DecodedPriors, level_sizes: Sequence[int], facts: DenseFacts) -> int:
    ends = np.cumsum(level_sizes)
    levels = [priors[end - size : end] for end, size in zip(ends, level_sizes, strict=True)]
    return sum(len(_candidates(_kept(level, facts), facts)[2]) for level in levels)


def _kept(level: DecodedPriors, facts: DenseFacts) -> DecodedPriors:
    if facts.head.choose not in PRIOR_CHOICES:
        return level
    return level[_best(level.ranks_of_priors(facts), facts.nms_pre)]


def _best(scores: np.ndarray, nms_pre: int) -> np.ndarray:
    order = np.argsort(-scores, kind='stable')
    return order[:nms_pre] if nms_pre > 0 else order


def _candidates(level: DecodedPriors, facts: DenseFacts) -> tuple[np.ndarray, ...]:
    head, ranks = facts.head, level.ranks(facts)
    judged = ranks if head.judged == 'product' else level.scores
    passes = judged >= facts.score_thr if head.inclusive else judged > facts.score_thr
    if head.choose == 'best':
        passes &= np.arange(judged.shape[1]) == level.scores.argmax(1)[:, None]
    if head.conf_thr > 0:
        factors = judged if level.factors is None else level.factors[:, None]
        passes &= factors >= np.float32(head.conf_thr)
    priors, labels = np.nonzero(passes)
    if head.choose == 'pairs':
        order = _best(level.scores[priors, labels], facts.nms_pre)
        priors, labels = priors[order], labels[order]
    return level.boxes[priors], ranks[priors, labels], labels


def _voted(results: Detections, levels: Sequence[DecodedPriors], facts: DenseFacts) -> Detections:
    boxes = np.concatenate([level.boxes for level in levels])
    ranks = np.concatenate([level.ranks(facts) for level in levels])[:, results.labels].T
    overlap = ious(np, results.bboxes_xyxy, boxes)
    weights = np.exp(-((1 - overlap) ** 2) / np.float32(VOTE_SPREAD)) * ranks
    weights = np.where((overlap > VOTES_ABOVE) & (ranks > facts.score_thr), weights, 0)
    total = weights.sum(1)
    results, weights, total = results[total > 0], weights[total > 0], total[total > 0]
    return dataclasses.replace(results, bboxes_xyxy=(weights @ boxes / total[:, None]).astype(np.float32))
