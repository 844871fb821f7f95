"""Rotated boxes of one image. Glossary: n results."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mmdeploy_ext.runtime.detections import Scored


@dataclasses.dataclass(frozen=True)
class RotatedDetections(Scored):
    """Rotated boxes of one image.

    Attributes:
        boxes: (n, 5) float32 x and y of the centre, width, height, in pixels, and angle in radians, clockwise
            in the picture.
        scores: (n,) float32.
        labels: (n,) int64.
        version: of the angles, a key of `angles.VERSIONS`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    version: str = 'le90'

    def __getitem__(self, rows: np.ndarray | slice) -> RotatedDetections:
        """Return the rows at some indices, or those of a mask."""
        return RotatedDetections(self.boxes[rows], self.scores[rows], self.labels[rows], self.version)

    def scaled(self, scale_factor: np.ndarray) -> RotatedDetections:
        """Return the boxes divided by `scale_factor` (4,), `w h w h`; as in mmrotate, angles stay."""
        ratios = np.append(scale_factor, 1).astype(np.float32)
        return dataclasses.replace(self, boxes=self.boxes / ratios)

    def place(self, index: int) -> dict[str, Any]:
        """Return the box: centre, width, height in pixels, and angle in radians."""
        return dict(rotated_box=[round(float(value), 4) for value in self.boxes[index]])
