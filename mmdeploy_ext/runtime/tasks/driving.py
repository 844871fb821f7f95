"""A driving scene: boxes with trajectories, lines of a map, and the plan, each compared by its own rules.

Boxes agree as in `bbox3d`, and in their trajectories, mode by mode. Lines are matched within a class by
Chamfer distance and are equal point by point. Of plans the chosen mode and each mode's points agree.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.tasks import bbox3d
from mmdeploy_ext.spec import matching
from mmdeploy_ext.spec.results import DetectionRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.driving import DrivingScene, Plan, Polylines
    from mmdeploy_ext.spec.matching import Pairing

RESULTS, PLACE = 'results', bbox3d.PLACE
ONE_TO_ONE, half_bars, half_text = bbox3d.ONE_TO_ONE, bbox3d.half_bars, bbox3d.half_text
fit_pair, draw_pair = bbox3d.fit_pair, bbox3d.draw_pair
COUNTS = ('reference', 'matched', 'missing', 'extra', 'outside', 'low', 'low_alone')
POINT_BAR, SCORE_BAR = 1e-3, 1e-4
"""Metres between equally numbered points, and score difference, of a line, a mode or a plan."""
LINE_SCORE_THR = 0.1
LINE_DISTANCE = 1.0
"""Metres: largest Chamfer distance of one line outside the bars."""


def match_detections(
    image: str, reference: DrivingScene, candidate: DrivingScene, tied: Any = None, **bars: Any
) -> DetectionRow:
    """Match boxes with trajectories by `bars` of `bbox3d`; in float32 lines and plan use their own."""
    boxes = match_boxes(image, reference, candidate, tied=tied, **bars)
    points, scores = bars.get('distance_bar', 0.0), bars.get('score_bar', 0.0)
    is_coarse = points > bbox3d.DISTANCE_BAR  # below float32
    own = dict(point_bar=points, score_bar=scores) if is_coarse else {}
    of_lines = dict(own, score_thr=bars['score_thr']) if 'score_thr' in bars else own
    rows = {
        'boxes': boxes,
        'lines': match_lines(image, reference.lines, candidate.lines, **of_lines),
        'plan': match_plans(image, reference.plan, candidate.plan, **own),
    }
    sums = {name: sum(getattr(row, name) for row in rows.values()) for name in COUNTS}
    distances = [row.worst_distance for row in rows.values() if row.worst_distance is not None]
    reasons = [f'{title}: {row.reason}' for title, row in rows.items() if not row.passed]
    return dataclasses.replace(
        boxes,
        **sums,
        worst_score=max(row.worst_score for row in rows.values()),
        worst_distance=max(distances, default=None),
        passed=not reasons,
        reason=', '.join(reasons),
        broken=not rows['plan'].passed or any(row.broken for row in rows.values()),  # no rate excuses a plan
        alone=sum((row.alone for row in rows.values()), ()),
        excused=sum((row.excused for row in rows.values()), ()),
    )


def pair_up(
    reference: DrivingScene,
    candidate: DrivingScene,
    distance_bar: float = bbox3d.DISTANCE_BAR,
    score_bar: float = bbox3d.SCORE_BAR,
    corner_bar: float | None = None,
    rounding: Mapping[str, np.ndarray] | None = None,
) -> Pairing:
    """Pair as `bbox3d.pair_up`; `corner_bar` above the float32 bars also applies to points."""

    def points_apart(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        gaps = reference.trajectories[rows].astype(np.float64) - candidate.trajectories[columns]
        return np.linalg.norm(gaps, axis=-1).max(axis=(1, 2))

    def modes_apart(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return np.abs(reference.mode_scores[rows] - candidate.mode_scores[columns]).max(axis=1)

    further = [
        ('trajectory', points_apart, max(POINT_BAR, corner_bar or 0.0)),
        ('mode', modes_apart, SCORE_BAR if score_bar <= bbox3d.SCORE_BAR else score_bar),
    ]
    return bbox3d.pair_up(reference, candidate, distance_bar, score_bar, corner_bar, further, rounding)


def problem_of_boxes(reference: DrivingScene, candidate: DrivingScene) -> str:
    for side, scene in dict(reference=reference, candidate=candidate).items():
        modes = scene.trajectories.shape[:2] == scene.mode_scores.shape
        if not modes or scene.trajectories.shape[1:] != reference.trajectories.shape[1:]:
            return f'{side}: trajectories {scene.trajectories.shape}, of modes {scene.mode_scores.shape}'
        if not (np.isfinite(scene.trajectories).all() and np.isfinite(scene.mode_scores).all()):
            return f'{side}: trajectories have NaN or infinite values'
    return bbox3d.problem(reference, candidate)


_match_boxes = functools.partial(bbox3d.match_lists, problem=problem_of_boxes, pair_by=pair_up)


def match_boxes(
    image: str, reference: DrivingScene, candidate: DrivingScene, **settings: Any
) -> DetectionRow:
    row = _match_boxes(image, reference, candidate, **settings)
    return matching.in_order_of_scores(row, candidate.scores)


def pair_lines(
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
        reference, candidate, apart <= point_bar, nearness, -LINE_DISTANCE, score_bar, gaps
    )


def problem_of_lines(reference: Polylines, candidate: Polylines) -> str:
    for side, lines in dict(reference=reference, candidate=candidate).items():
        if (
            lines.points.shape[:1] != lines.scores.shape
            or lines.points.shape[1:] != reference.points.shape[1:]
        ):
            return f'{side}: points {lines.points.shape} and scores {lines.scores.shape} do not match'
        if not (np.isfinite(lines.points).all() and np.isfinite(lines.scores).all()):
            return f'{side}: lines have NaN or infinite values'
    return ''


_match_lines = functools.partial(
    matching.match_lists,
    problem=problem_of_lines,
    pair_by=pair_lines,
    figures=bbox3d.figures,
    score_thr=LINE_SCORE_THR,
    score_bar=SCORE_BAR,
)


def match_lines(image: str, reference: Polylines, candidate: Polylines, **settings: Any) -> Any:
    """Match two lists of lines; the candidate's must descend by score."""
    row = _match_lines(image, reference, candidate, **settings)
    return matching.in_order_of_scores(row, candidate.scores)


def match_plans(
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
        tied = (text,) if gap <= matching.TIE else ()
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
