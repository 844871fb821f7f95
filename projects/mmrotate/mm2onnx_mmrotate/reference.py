"""mmrotate's detectors, unpatched: their results, which proofs compare the graphs with."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmcv.ops import nms_rotated
from mmrotate.core.post_processing import bbox_nms_rotated

from mm2onnx_mmrotate.detections import RotatedDetections
from mmdeploy_ext.families.images import ImageReference, PreparedImage


class RotatedReference(ImageReference):
    """A detector of mmrotate.

    Attributes:
        version: of the angles of its results.
    """

    version: str

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[RotatedDetections]:
        with equal_scores_by_index():
            results = self.tested(images, rescale)
        return [rotated_boxes_of_classes(of_image, self.version) for of_image in results]


def rotated_boxes_of_classes(result: Sequence[np.ndarray], version: str) -> RotatedDetections:
    """Return the boxes of an image, best first, of equal scores the lower class first.

    `result` has an array (n, 6) of each class: box and score; `version` is the angle version of the boxes.
    """
    rows = np.concatenate([np.asarray(boxes, np.float32).reshape(-1, 6) for boxes in result])
    labels = np.repeat(np.arange(len(result), dtype=np.int64), [len(boxes) for boxes in result])
    order = np.argsort(-rows[:, 5], kind='stable')
    return RotatedDetections(rows[order, :5], rows[order, 5], labels[order], version)


@contextlib.contextmanager
def equal_scores_by_index() -> Iterator[None]:
    """Inside the block mmrotate's suppression takes boxes of equal scores in the order of their indices.

    PyTorch's sort leaves their order open (measured with torch 2.13: that of 100 equal scores is another),
    and ONNX's TopK does not. Equal scores are common: all regions of no size have the same features.
    """

    def suppress(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> tuple[torch.Tensor, ...]:
        order = torch.sort(scores, dim=0, descending=True, stable=True)[1]
        falling = torch.arange(len(scores), 0, -1).to(scores)
        _, keep = nms_rotated(boxes[order], falling, iou_threshold)
        return boxes[order[keep]], order[keep]

    bbox_nms_rotated.nms_rotated = suppress
    try:
        yield
    finally:
        bbox_nms_rotated.nms_rotated = nms_rotated
