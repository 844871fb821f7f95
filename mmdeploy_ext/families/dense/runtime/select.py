"""Which of a dense head's boxes become detections: threshold, top-k, suppression, in numpy."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.parts.runtime.box_votes import VOTE_SPREAD, VOTES_ABOVE
from mmdeploy_ext.runtime.detections import Detections, Rows, nms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Level(Rows):
    """Decoded priors of one image.

    Attributes:
        boxes: (A, 4) xyxy, pixels of the network input, not clipped.
        scores: (A, C) class scores.
        factors: (A,) score factors, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    factors: np.ndarray | None

    def ranks(self, facts: Mapping[str, Any]) -> np.ndarray:
        """Return the scores (A, C) that results are ordered by."""
        if self.factors is None:
            return self.scores
        product = self.scores * self.factors[:, None]
        return np.sqrt(np.maximum(product, 0)) if facts['head']['root'] else product


def postprocess_image(
    priors: Level,
    level_sizes: Sequence[int],
    clip_hw: Sequence[float],
    scale_factor: np.ndarray,
    facts: Mapping[str, Any],
    border: Sequence[float] = (0.0, 0.0),
) -> Detections:
    """Post-process one image exactly as the `full` graph and mmdet's `get_bboxes` do.

    Args:
        priors: of all levels.
        level_sizes: how many of each level.
        clip_hw: height and width that boxes are clipped to.
        scale_factor: (4,) `w h w h` that boxes are divided by.
        facts: the `postprocess` entry of the file's metadata.
        border: padding above and left of the image, which the boxes of some heads lose.
    """
    boxes = _clipped(priors.boxes, clip_hw, facts)
    if facts['head']['bordered']:
        boxes = boxes - np.asarray([border[1], border[0]] * 2, np.float32)
    boxes = boxes / np.asarray(scale_factor, np.float32)
    priors = dataclasses.replace(priors, boxes=boxes)
    starts = np.concatenate([[0], np.cumsum(level_sizes)])
    levels = [priors[start:end] for start, end in itertools.pairwise(starts)]
    if facts['head']['choose'] == 'priors':
        levels = [_best_priors(level, facts) for level in levels]
    chosen = [_candidates(level, facts) for level in levels]
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    keep = _kept(boxes, scores, labels, facts)
    if facts['max_per_img'] > 0:
        keep = keep[: facts['max_per_img']]
    found = Detections(boxes[keep], scores[keep], labels[keep].astype(np.int64))
    return _voted(found, levels, facts) if facts['head']['votes'] else found


def _kept(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    """Return what the suppression keeps (indices), by descending score."""
    if not facts['head']['suppresses']:
        return np.argsort(-scores, kind='stable')
    separated = boxes
    if len(boxes) and not facts['class_agnostic']:
        separated = boxes + (labels.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]
    return nms(separated, scores, facts['iou_threshold'])


def _clipped(boxes: np.ndarray, clip_hw: Sequence[float], facts: Mapping[str, Any]) -> np.ndarray:
    if not facts['clip_border']:
        return boxes
    upper = np.asarray([clip_hw[1], clip_hw[0]] * 2, np.float32) - np.float32(facts['head']['clip_inset'])
    return np.minimum(np.maximum(boxes, np.float32(0)), upper)


def _best_priors(level: Level, facts: Mapping[str, Any]) -> Level:
    """Keep the priors with the `nms_pre` best scores of any class."""
    best = level.ranks(facts).max(1)
    return level[np.argsort(-best, kind='stable')[: facts['nms_pre'] if facts['nms_pre'] > 0 else None]]


def _candidates(level: Level, facts: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """Return boxes, scores and labels of what passes the threshold, at most `nms_pre` pairs."""
    head, ranks = facts['head'], level.ranks(facts)
    judged = ranks if head['judged'] == 'product' else level.scores
    passes = judged >= facts['score_thr'] if head['inclusive'] else judged > facts['score_thr']
    if head['choose'] == 'best':
        passes &= np.arange(judged.shape[1]) == level.scores.argmax(1)[:, None]
    if head['conf_thr'] > 0:
        passes &= level.factors[:, None] >= np.float32(head['conf_thr'])
    priors, labels = np.nonzero(passes)
    if head['choose'] == 'pairs':
        order = np.argsort(-level.scores[priors, labels], kind='stable')
        order = order[: facts['nms_pre'] if facts['nms_pre'] > 0 else None]
        priors, labels = priors[order], labels[order]
    return level.boxes[priors], ranks[priors, labels], labels


def _voted(found: Detections, levels: Sequence[Level], facts: Mapping[str, Any]) -> Detections:
    """Replace each box by the mean of the candidates of its class that overlap it.

    One without an area overlaps none, and is left out.
    """
    boxes = np.concatenate([level.boxes for level in levels])
    ranks = np.concatenate([level.ranks(facts) for level in levels])[:, found.labels].T
    overlap = ious(found.bboxes_xyxy, boxes)
    weights = np.exp(-((1 - overlap) ** 2) / np.float32(VOTE_SPREAD)) * ranks
    weights = np.where((overlap > VOTES_ABOVE) & (ranks > facts['score_thr']), weights, 0)
    total = weights.sum(1)
    found, weights, total = found[total > 0], weights[total > 0], total[total > 0]
    return dataclasses.replace(found, bboxes_xyxy=(weights @ boxes / total[:, None]).astype(np.float32))


def ious(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the IoU (n, m) float32 of boxes (n, 4) and (m, 4) xyxy; unions of at least 1e-6."""
    size = np.minimum(one[:, None, 2:], other[:, 2:]) - np.maximum(one[:, None, :2], other[:, :2])
    overlap = np.prod(np.maximum(size, 0), -1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (one, other)]
    return overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, np.float32(1e-6))
