"""YOLACT without PyTorch: a graph of the form 'full' does all but taking the padding away.

Glossary: B batch, n rows of an image, `max_per_img` of the head, h, w size of the masks: `ori_shape`, else
the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.detections import Instances, unpadded

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays

RUNNERS = {'full': 'with_postprocess'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Instances]:
    """Return the instances of each image of a batch.

    Boxes are in pixels of the original picture if the graph was fed `scale_factor`, else of its input.

    Args:
        metadata: metadata of the file, of which nothing is needed.
        outputs: outputs of the graph by name: `dets` (B, n, 5) x1 y1 x2 y2 score, `labels` (B, n) int64, -1
            for padding, and `masks` (B, n, h, w) bool.
        feeds: inputs of the graph by name, of which none is needed.
    """
    dets, columns = outputs['dets'], dict(masks=outputs['masks'], labels=outputs['labels'])
    return unpadded(Instances, bboxes_xyxy=dets[..., :4], scores=dets[..., 4], **columns)
