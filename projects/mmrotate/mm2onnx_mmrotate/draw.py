"""Pictures of rotated boxes."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mmdeploy_ext.runtime.draw import class_colour


def draw(
    image_bgr: np.ndarray, results: Any, classes: Sequence[str], score_thr: float = 0.3, marked: Any = None
) -> np.ndarray:
    """Return a copy of a picture with the boxes."""
    picture = image_bgr.copy()
    for box, score, label in zip(results.boxes, results.scores, results.labels, strict=True):
        if score < score_thr:
            continue
        x, y, width, height, angle = map(float, box)
        corners = cv2.boxPoints(((x, y), (width, height), np.rad2deg(angle)))
        cv2.polylines(picture, [np.int32(corners)], True, class_colour(int(label)), 2)
    return picture
