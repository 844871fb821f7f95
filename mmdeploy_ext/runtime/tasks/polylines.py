"""Lines of a map: matched within a class by Chamfer distance, equal point by point."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.tasks import bbox3d
from mmdeploy_ext.spec import matching

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.driving import Polylines
    from mmdeploy_ext.spec.matching import Pairing

RESULTS, PLACE = 'lines', 'worst Δm'
SCORE_THR = 0.1
POINT_BAR, SCORE_BAR = 1e-3, 1e-4
"""Metres between equally numbered points, and score difference, of a matched pair."""
PAIR_DISTANCE = 1.0
"""Metres: largest Chamfer distance of one line outside the bars."""


def half_bars(bars: Any) -> dict[str, float]:
    return dict(point_bar=bars.distance_m, score_bar=bars.score)


half_text = bbox3d.half_text


def problem(reference: Polylines, candidate: Polylines) -> str:
    for side, lines in dict(reference=reference, candidate=candidate).items():
        if (
            lines.points.shape[:1] != lines.scores.shape
            or lines.points.shape[1:] != reference.points.shape[1:]
        ):
            return f'{side}: points {lines.points.shape} and scores {lines.scores.shape} do not match'
        if not (np.isfinite(lines.points).all() and np.isfinite(lines.scores).all()):
            return f'{side}: lines have NaN or infinite values'
    return ''


def pair_up(
    reference: Polylines, candidate: Polylines, point_bar: float = POINT_BAR, score_bar: float = SCORE_BAR
) -> Pairing:
    """Pair two lists one to one, within a class; nearness is minus the Chamfer distance, metres."""
    first, second = (lines.points.astype(np.float64) for lines in (reference, candidate))
    nearness = np.full((len(first), len(second)), -np.inf)
    apart = np.full(nearness.shape, np.inf)
    for row, line in enumerate(first):
        columns = np.flatnonzero(candidate.labels == reference.labels[row])
        gaps = np.linalg.norm(line[None, :, None] - second[columns, None], axis=-1)
        nearness[row, columns] = -(gaps.min(1).mean(-1) + gaps.min(2).mean(-1)) / 2
        apart[row, columns] = np.linalg.norm(line - second[columns], axis=-1).max(-1)
    gaps = [('points', apart, point_bar)]
    return matching.pair_lists(
        reference, candidate, apart <= point_bar, nearness, -PAIR_DISTANCE, score_bar, gaps
    )


match_lists = functools.partial(
    matching.match_lists,
    problem=problem,
    pair_by=pair_up,
    figures=bbox3d.figures,
    score_thr=SCORE_THR,
    score_bar=SCORE_BAR,
)


def match_detections(image: str, reference: Polylines, candidate: Polylines, **settings: Any) -> Any:
    """Match two lists of lines; the candidate's must descend by score."""
    row = match_lists(image, reference, candidate, **settings)
    return matching.in_order_of_scores(row, candidate.scores)
