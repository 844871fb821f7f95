"""Detectors of queries in numpy: boxes, boxes with masks, instances and panoptic maps.

Glossary: B batch, Q queries, C classes, H4, W4 a quarter of the network input, h, w size of the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.common.runtime import padded_results, pasted_masks
from mmdeploy_ext.runtime.panoptic import Segments, fuse_queries, resized, segments_of

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays, Detections, Instances
    from mmdeploy_ext.spec.metadata import Metadata

RUNNERS = dict.fromkeys(('full', 'raw'), 'with_postprocess')


def detections(
    metadata: Metadata, outputs: Arrays, feeds: Arrays
) -> list[Detections] | list[Instances] | list[Segments]:
    facts = metadata.postprocess
    if facts.num_things is not None:
        return panoptic_maps(metadata, outputs, feeds)
    if facts.mask_thr is not None:
        return pasted_masks.detections(metadata, outputs, feeds)
    return padded_results.detections(metadata, outputs, feeds)


def panoptic_maps(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Segments]:
    """Return the segments of each image of a batch.

    Args:
        metadata: metadata of the file.
        outputs: 'full': `panoptic` (B, h, w) int32, class + 1000 * number (things from 1 on, stuff 0), or the
            number of classes outside of segments; 'raw': `logits` (B, Q, C + 1) and `mask_logits` (B, Q, H4,
            W4) float32.
        feeds: for 'raw' `img_shape` (B or 1, 2) and `ori_shape` (2,), h, w before padding and of the results,
            pixels; 0 or none means the input size.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        return segments_of(outputs, facts.num_classes)
    batch = len(outputs['logits'])
    shapes = np.broadcast_to(feeds.get('img_shape', np.zeros(2, np.float32)), (batch, 2))
    original = feeds.get('ori_shape', np.zeros(2, np.int64))
    segments = []
    for logits, masks, shape in zip(outputs['logits'], outputs['mask_logits'], shapes, strict=True):
        panoptic = fuse_queries(logits, resized(masks, shape, original), facts)
        segments.append(Segments.of_map(panoptic, facts.num_classes))
    return segments
