"""Level 3 of a proof for LiDAR sweeps: boxes matched as all boxes in 3D, drawn over the points from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.proof.tasks.bbox3d import SCORE_THR, layers_of, match_detections

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mmdeploy_ext.proof.results import Pair

__all__ = ['SCORE_THR', 'draw_pair', 'fit_pair', 'match_detections']


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
    from mmdeploy_ext.runtime.draw3d import sweep_picture

    return sweep_picture(pair.title, pair.shown, layers_of(pair, score_thr), classes)
