"""Two-stage detectors as mmrotate runs them, unpatched: what a proof compares the graphs with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.reference import rotated_detections
from mm2onnx_mmrotate.two_stage.heads import version_of
from mmdeploy_ext.families.images import ImageReference, PreparedImage


class RotatedTwoStageReference(ImageReference):
    """A two-stage detector of mmrotate."""

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[RotatedDetections]:
        """Without `rescale` the ratios are 1: mmrotate's `GVBBoxHead` fails if it does not divide by any."""
        if not rescale:
            ones = np.ones(4, np.float32)
            images = [dataclasses.replace(image, scale_factor=ones) for image in images]
        return rotated_detections(self.model, images, True, version_of(self.model))

    def tensors(self, feeds: Mapping[str, np.ndarray], form: str, **options: Any) -> dict[str, np.ndarray]:
        """Nothing: outputs of all forms have rows of proposals, and are compared by their results."""
        return {}
