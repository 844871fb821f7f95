"""Results of ImVoxelNet in a proof: match 3D boxes, draw both engines (functions of `tasks/__init__.py`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.families.imvoxelnet.runtime import draw
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.tasks import bbox2d, bbox3d
from mmdeploy_ext.spec.results import DetectionRow, Pair

RESULTS, PLACE = bbox3d.RESULTS, bbox3d.PLACE
SCORE_BAR = 1e-4
fit_pair = bbox2d.fit_pair
"""(pair) -> the pair, scaled to a size with legible labels."""
problem, half_bars, half_text = bbox3d.problem, bbox3d.half_bars, bbox3d.half_text
"""(reference, candidate) -> why two lists cannot be compared, or ''; keywords of `Bars`; their words."""
pair_up = functools.partial(bbox3d.pair_up, score_bar=SCORE_BAR)
"""(reference, candidate, bars by keyword) -> `Pairing`, as `bbox3d.pair_up` pairs boxes within a class."""


def match_detections(
    image: str, reference: Detections3D, candidate: Detections3D, **settings: Any
) -> DetectionRow:
    settings.setdefault('score_bar', SCORE_BAR)
    return bbox3d.match_detections(image, reference, candidate, **settings)


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' boxes of at least `score_thr` side by side, PyTorch left: (h, w, 3) uint8 BGR.

    Boxes without a partner within the bars of float32 are outlined in white.
    """
    return bbox2d.side_by_side(pair, classes, score_thr, draw=draw, problem=problem, pair_by=pair_up)
