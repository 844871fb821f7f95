"""Two-stage detectors as mmrotate runs them, unpatched: what a proof compares the graphs with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.reference import RotatedReference
from mm2onnx_mmrotate.two_stage.heads import coder_of, last_head
from mmdeploy_ext.families.images import PreparedImage


class RotatedTwoStageReference(RotatedReference):
    """A two-stage detector of mmrotate."""

    @property
    def version(self) -> str:
        return coder_of(last_head(self.model.roi_head)).version

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[RotatedDetections]:
        """Without `rescale` the ratios are 1: mmrotate's `GVBBoxHead` fails if it does not divide by any."""
        if not rescale:
            ones = np.ones(4, np.float32)
            images = [dataclasses.replace(image, scale_factor=ones) for image in images]
        return super().results(images, True)

    def tensors(self, feeds: Mapping[str, np.ndarray], form: str, **options: Any) -> dict[str, np.ndarray]:
        """Nothing: outputs of all forms have rows of proposals, and are compared by their results."""
        return {}
