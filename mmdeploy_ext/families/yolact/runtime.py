"""YOLACT without PyTorch: a `full` graph does all but taking the padding away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.runtime.detections import Instances, unpadded

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays

RUNNERS = {'full': 'with_postprocess'}
"""Form -> script that draws the results of such a file, see `runtime/family_runtime.py`."""


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Instances]:
    """Return the instances per image of the outputs of a `full` graph, without rows of padding.

    For the arguments see `runtime/family_runtime.py`.
    """
    dets, columns = outputs['dets'], dict(masks=outputs['masks'], labels=outputs['labels'])
    return unpadded(Instances, bboxes_xyxy=dets[..., :4], scores=dets[..., 4], **columns)
