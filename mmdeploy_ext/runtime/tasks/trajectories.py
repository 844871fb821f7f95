"""3D boxes with trajectories: a pair must agree in both, mode by mode."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.tasks import bbox3d
from mmdeploy_ext.spec import matching

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.driving import DrivingScene
    from mmdeploy_ext.spec.matching import Pairing
    from mmdeploy_ext.spec.results import DetectionRow

RESULTS, PLACE = 'boxes with trajectories', bbox3d.PLACE
ONE_TO_ONE, half_bars, half_text = bbox3d.ONE_TO_ONE, bbox3d.half_bars, bbox3d.half_text
POINT_BAR, MODE_BAR = 1e-3, 1e-4
"""Metres between points of one step and mode, and difference of a mode's scores."""
fit_pair, draw_pair = bbox3d.fit_pair, bbox3d.draw_pair


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
        ('mode', modes_apart, MODE_BAR if score_bar <= bbox3d.SCORE_BAR else score_bar),
    ]
    return bbox3d.pair_up(reference, candidate, distance_bar, score_bar, corner_bar, further, rounding)


def problem(reference: DrivingScene, candidate: DrivingScene) -> str:
    for side, scene in dict(reference=reference, candidate=candidate).items():
        modes = scene.trajectories.shape[:2] == scene.mode_scores.shape
        if not modes or scene.trajectories.shape[1:] != reference.trajectories.shape[1:]:
            return f'{side}: trajectories {scene.trajectories.shape}, of modes {scene.mode_scores.shape}'
        if not (np.isfinite(scene.trajectories).all() and np.isfinite(scene.mode_scores).all()):
            return f'{side}: trajectories have NaN or infinite values'
    return bbox3d.problem(reference, candidate)


match_lists = functools.partial(bbox3d.match_lists, problem=problem, pair_by=pair_up)


def match_detections(
    image: str, reference: DrivingScene, candidate: DrivingScene, **settings: Any
) -> DetectionRow:
    row = match_lists(image, reference, candidate, **settings)
    return matching.in_order_of_scores(row, candidate.scores)
