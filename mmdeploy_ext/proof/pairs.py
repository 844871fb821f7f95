"""What a proof keeps for the report's pictures: one sample and what both engines found in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from mmdeploy_ext.runtime.detections import Detections
    from mmdeploy_ext.runtime.detections3d import Detections3D


@dataclasses.dataclass(frozen=True)
class PicturePair:
    """One image with both engines' detections, for the report.

    Attributes:
        title: file name and size.
        image_bgr: (h, w, 3) uint8 as the network saw it, before normalising.
        reference: PyTorch's detections, in pixels of `image_bgr`.
        candidate: the ONNX engine's.
        engine: what people call that engine.
    """

    title: str
    image_bgr: np.ndarray
    reference: Detections
    candidate: Detections
    engine: str = 'ONNX Runtime'


@dataclasses.dataclass(frozen=True)
class SweepPair:
    """One LiDAR sweep with both engines' detections, for the report.

    Attributes:
        title: of the sweep.
        points: (P, D) float32, x, y, z first, LiDAR frame.
        reference: PyTorch's detections, LiDAR frame.
        candidate: the ONNX engine's.
        engine: what people call that engine.
    """

    title: str
    points: np.ndarray
    reference: Detections3D
    candidate: Detections3D
    engine: str = 'ONNX Runtime'


@dataclasses.dataclass(frozen=True)
class FramePair:
    """One frame of all cameras with both engines' detections, for the report.

    Attributes:
        title: of the frame.
        images_bgr: (N, h, w, 3) uint8 as the network saw them, before normalising.
        lidar2img: (N, 4, 4) float64, LiDAR frame to pixels of those images.
        reference: PyTorch's detections, LiDAR frame.
        candidate: the ONNX engine's.
        engine: what people call that engine.
    """

    title: str
    images_bgr: np.ndarray
    lidar2img: np.ndarray
    reference: Detections3D
    candidate: Detections3D
    engine: str = 'ONNX Runtime'
