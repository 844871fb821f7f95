"""Plans of a car: chosen mode and each mode's points must agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.spec.matching import TIE
from mmdeploy_ext.spec.results import DetectionRow

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.driving import Plan

POINT_BAR = 1e-3
"""Metres between points of one step and mode."""
SCORE_BAR = 1e-4
"""Difference of a mode's scores."""


def match_detections(
    image: str,
    reference: Plan,
    candidate: Plan,
    point_bar: float = POINT_BAR,
    score_bar: float = SCORE_BAR,
) -> DetectionRow:
    """Compare two plans, and the chosen one; another mode with its score within `matching.TIE` is a tie."""
    for side, plan in dict(reference=reference, candidate=candidate).items():
        for own, expected in ((plan.points, reference.points), (plan.final, reference.points[0])):
            if own.shape != expected.shape or not np.isfinite(own).all():
                reason = f'{side}: a plan of points {own.shape}, expected finite {expected.shape}'
                return DetectionRow(image, 1, 0, 1, 1, 0.0, 1.0, False, reason, broken=True)
    apart = np.linalg.norm(reference.points.astype(np.float64) - candidate.points, axis=-1).max(-1)
    scores = np.abs(reference.scores.astype(np.float64) - candidate.scores)
    tied: tuple[str, ...] = ()
    if reference.mode != candidate.mode:
        gap = abs(float(reference.scores[reference.mode]) - float(reference.scores[candidate.mode]))
        text = f'plan of mode {candidate.mode}, expected {reference.mode}, {gap:.2g} apart'
        tied = (text,) if gap <= TIE else ()
        if not tied:
            return DetectionRow(image, 1, 0, 0, 0, 1.0, float(scores.max()), False, text, outside=1)
    chosen = reference.points[candidate.mode] if tied else reference.final
    final = float(np.linalg.norm(chosen.astype(np.float64) - candidate.final, axis=-1).max())
    reasons = [
        f'plan of mode {mode}: {title} {worst[mode]:.2g} apart, allowed {bar:g}'
        for title, worst, bar in (('points', apart, point_bar), ('scores', scores, score_bar))
        if not worst[mode := int(worst.argmax())] <= bar
    ]
    if not final <= point_bar:
        reasons.append(f'the chosen plan: points {final:.2g} apart, allowed {point_bar:g}')
    return DetectionRow(
        image,
        1,
        int(not reasons),
        0,
        0,
        worst_iou=1.0,
        worst_score=float(scores.max()),
        passed=not reasons,
        reason=', '.join(reasons),
        outside=int(bool(reasons)),
        worst_distance=max(float(apart.max()), final),
        excused=tied,
    )
