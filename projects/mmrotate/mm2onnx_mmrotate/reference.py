"""mmrotate's detectors, unpatched: their results, which proofs compare the graphs with."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from mm2onnx_mmrotate.detections import RotatedDetections
from mmdeploy_ext.families.parts.mmdet_reference import metas_of, tested
from mmdeploy_ext.preprocess.pictures import PreparedImage


def rotated_detections(
    model: nn.Module, images: Sequence[PreparedImage], rescale: bool, version: str
) -> list[RotatedDetections]:
    """Return the results of the detector's own test path, in descending score order.

    Boxes are in pixels of the originals with `rescale`; `version` is that of the angles.
    """
    results = tested(model, images, metas_of(images), rescale)
    return [rotated_boxes_of_classes(of_image, version) for of_image in results]


def rotated_boxes_of_classes(result: Sequence[np.ndarray], version: str) -> RotatedDetections:
    """Return the boxes of an image; `result` has an array (n, 6) of each class: box and score."""
    rows = np.concatenate([np.asarray(boxes, np.float32).reshape(-1, 6) for boxes in result])
    labels = np.repeat(np.arange(len(result), dtype=np.int64), [len(boxes) for boxes in result])
    order = np.argsort(-rows[:, 5], kind='stable')
    return RotatedDetections(rows[order, :5], rows[order, 5], labels[order], version)
