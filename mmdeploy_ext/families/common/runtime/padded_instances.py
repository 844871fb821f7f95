"""Files with masks in numpy whose form 'full' leaves only padding to remove.

Glossary: B batch, n rows of an image, `max_per_img` of the head, h, w size of the masks: `ori_shape`, else
the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.detections import Instances, unpadded

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata

RUNNERS = {'full': 'with_postprocess'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Instances]:
    """Return the instances of each image of a batch.

    Boxes are in pixels of the original if `scale_factor` was fed, else of the input. `outputs` are `dets` (B,
    n, 5) x1 y1 x2 y2 score, `labels` (B, n) int64, -1 for padding, and `masks` (B, n, h, w) bool.
    """
    dets, columns = outputs['dets'], dict(masks=outputs['masks'], labels=outputs['labels'])
    return unpadded(Instances, bboxes_xyxy=dets[..., :4], scores=dets[..., 4], **columns)
