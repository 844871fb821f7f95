"""Detectors of corners as mmdet runs them, unpatched: what a proof compares the graph with."""

from collections.abc import Sequence

from torch import nn

from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes, metas_of, tested
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path, of images without a flipped one beside."""
    return [boxes_of_classes(result) for result in tested(model, images, metas_of(images), rescale)]
