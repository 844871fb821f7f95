"""Two-stage detectors that give panoptic maps, without PyTorch: numpy fusion of the `raw` form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.parts.runtime.pasted_masks import paste
from mmdeploy_ext.runtime.panoptic import Segments, fuse_instances, resized, segments_of

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays

RUNNERS = dict.fromkeys(('full', 'raw'), 'with_postprocess')
"""Form of a file -> the script that draws its results, see `runtime/family_runtime.py`."""


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Segments]:
    """Return the segments per image, see `runtime/family_runtime.py`.

    A `full` file gives `panoptic` (B, h, w), a `raw` one `dets` (B, n, 5), `labels` (B, n), `masks` (B, n, m,
    m) in the frame of the box, and `semantic_logits` (B, S + 1, H4, W4); with it feeds hold `ori_shape` (2,),
    height and width of the map.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        return segments_of(outputs, facts['num_classes'])
    batch, (height, width) = len(outputs['labels']), map(int, feeds['ori_shape'])
    shapes = feeds.get('img_shape', np.zeros((batch, 2), np.float32))
    scales = feeds.get('scale_factor', np.ones((batch, 4), np.float32))
    names = ('dets', 'labels', 'masks', 'semantic_logits')
    segments = []
    for dets, labels, masks, semantic, shape, scale in zip(
        *(outputs[name] for name in names), shapes, scales, strict=True
    ):
        present = labels >= 0
        boxes = dets[present, :4] * scale / scale  # as the graph does, which rounds
        pasted = paste(masks[present], boxes, height, width, facts['mask_thr'])
        stuff = resized(semantic, shape, (height, width))
        panoptic = fuse_instances(pasted, labels[present], stuff, facts)
        segments.append(Segments.of_map(panoptic, facts['num_classes']))
    return segments
