"""Two-stage detectors as mmrotate runs them, unpatched: what a proof compares the graphs with."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import nn

from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.reference import rotated_detections
from mm2onnx_mmrotate.two_stage.heads import version_of
from mmdeploy_ext.preprocess.pictures import PreparedImage


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[RotatedDetections]:
    """Return the results of the detector's own test path, per image, best first.

    `images` are network inputs of one size. Boxes are in pixels of the originals with `rescale`. Without it
    the ratios are 1, so that boxes are in pixels of the network input: mmrotate's
    `GVBBoxHead` fails if it does not divide by any.
    """
    if not rescale:
        ones = np.ones(4, np.float32)
        images = [dataclasses.replace(image, scale_factor=ones) for image in images]
    return rotated_detections(model, images, True, version_of(model))
