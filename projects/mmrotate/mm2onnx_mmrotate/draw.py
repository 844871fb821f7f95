"""Pictures of rotated boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.draw import draw_detections

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mm2onnx_mmrotate.detections import RotatedDetections


def draw(
    image_bgr: np.ndarray,
    results: RotatedDetections,
    classes: Sequence[str],
    score_thr: float = 0.3,
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Draw rotated boxes with class names and scores; see `mmdeploy_ext.runtime.draw.draw_detections`.

    Args:
        image_bgr: (h, w, 3) uint8, which stays as it is; a copy with the boxes is returned.
        results: in pixels of the image.
        classes: names by label.
        score_thr: boxes below are left out.
        marked: (n,) bool, of all results; these get a white frame and an exclamation mark; None: none do.
    """
    return draw_detections(image_bgr, results, classes, score_thr, marked, outlines=results.corners)
