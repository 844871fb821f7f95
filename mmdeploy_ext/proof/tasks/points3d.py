"""Level 3 of a proof for LiDAR sweeps: boxes matched as all boxes in 3D, drawn over the points from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.proof.tasks.bbox3d import SCORE_THR, layers_of, match_detections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.proof.results import Pair
    from mmdeploy_ext.runtime.bird_eye import Layer

__all__ = ['SCORE_THR', 'draw_layers', 'draw_pair', 'fit_pair', 'match_detections']
SIDE = 560
MARGIN_M = 4.0
LEAST_EXTENT_M = 12.0


def fit_pair(pair: Pair) -> Pair:
    """Return the pair as it is: the view from above has its own scale."""
    return pair


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw each engine's boxes over the points, side by side, seen from above.

    Boxes without an equal on the other side, by the bars of `match_detections`, are ringed in white.

    Args:
        pair: points and both lists.
        classes: names by label.
        score_thr: boxes below are left out.

    Returns:
        (h, w, 3) uint8 BGR.
    """
    return draw_layers(pair.title, pair.shown, layers_of(pair, score_thr), classes)


def draw_layers(
    title: str, points: np.ndarray, layers: Sequence[Layer], classes: Sequence[str]
) -> np.ndarray:
    """Draw the points once per list of boxes, side by side, on one scale.

    Args:
        title: of the sweep.
        points: (P, 3 or more), LiDAR frame.
        layers: lists of boxes.
        classes: names by label.

    Returns:
        (h, w, 3) uint8 BGR.
    """
    from mmdeploy_ext.runtime.bird_eye import DARK, bird_eye
    from mmdeploy_ext.runtime.draw import write
    from mmdeploy_ext.runtime.draw3d import GAP

    far = [float(np.abs(layer.detections.boxes[:, :2]).max(initial=0.0)) for layer in layers]
    extent = max(LEAST_EXTENT_M, *far) + MARGIN_M
    gap = np.full((SIDE, GAP, 3), DARK, np.uint8)
    views: list[np.ndarray] = []
    for layer in layers:
        views += [gap] * bool(views) + [bird_eye([layer], classes, SIDE, extent, points=points)]
    row = np.hstack(views)
    strip = np.full((28, row.shape[1], 3), DARK, np.uint8)
    write(strip, title, (8, 20), 0.55)
    return np.vstack([strip, row])
