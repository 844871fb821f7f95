"""A driving scene: boxes with trajectories, lines and the plan, each by the rules of its own task."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.runtime.tasks import bbox3d, plan, polylines, trajectories

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.driving import DrivingScene
    from mmdeploy_ext.spec.results import DetectionRow

RESULTS, PLACE = 'results', bbox3d.PLACE
ONE_TO_ONE, half_bars, half_text = bbox3d.ONE_TO_ONE, bbox3d.half_bars, bbox3d.half_text
pair_up, fit_pair, draw_pair = trajectories.pair_up, trajectories.fit_pair, trajectories.draw_pair
COUNTS = ('reference', 'matched', 'missing', 'extra', 'outside', 'low', 'low_alone')


def match_detections(
    image: str, reference: DrivingScene, candidate: DrivingScene, tied: Any = None, **bars: Any
) -> DetectionRow:
    """Match boxes with trajectories by `bars` of `bbox3d`; in float32 lines and plan use their own."""
    boxes = trajectories.match_detections(image, reference, candidate, tied=tied, **bars)
    points, scores = bars.get('distance_bar', 0.0), bars.get('score_bar', 0.0)
    is_coarse = points > bbox3d.DISTANCE_BAR  # below float32
    own = dict(point_bar=points, score_bar=scores) if is_coarse else {}
    of_lines = dict(own, score_thr=bars['score_thr']) if 'score_thr' in bars else own
    rows = {
        'boxes': boxes,
        'lines': polylines.match_detections(image, reference.lines, candidate.lines, **of_lines),
        'plan': plan.match_detections(image, reference.plan, candidate.plan, **own),
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
