"""Two-stage detectors in numpy: boxes, boxes with masks, and panoptic maps.

Glossary: B batch, n boxes, m side of a mask, S classes of stuff, H4, W4 size of the semantic map, h, w size
of the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.common.runtime import padded_results, pasted_masks
from mmdeploy_ext.runtime.panoptic import Segments, fuse_instances, resized, segments_of

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
    """Return the segments of each image of a batch; where masks overlap, the earlier box has the pixel.

    Args:
        metadata: metadata of the file.
        outputs: 'full': `panoptic` (B, h, w) int32, class + 1000 * number (things from 1 on, stuff 0), or the
            number of classes outside of segments; 'raw': `dets` (B, n, 5) x1 y1 x2 y2 score in pixels of the
            original, best first, `labels` (B, n) int64, -1 for padding, `masks` (B, n, m, m) 0..1 in the
            frame of the box, and `semantic_logits` (B, S + 1, H4, W4), the last channel for no stuff.
        feeds: for 'raw' `ori_shape` (2,), h, w of the maps; and optionally `img_shape` (B or 1, 2), h, w
            before padding (0: all of the input), and `scale_factor` (B or 1, 4), by which boxes were divided.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        return segments_of(outputs, facts.num_classes)
    batch, (height, width) = len(outputs['labels']), map(int, feeds['ori_shape'])
    shapes = np.broadcast_to(feeds.get('img_shape', np.zeros(2, np.float32)), (batch, 2))
    scales = np.broadcast_to(feeds.get('scale_factor', np.ones(4, np.float32)), (batch, 4))
    names = ('dets', 'labels', 'masks', 'semantic_logits')
    segments = []
    for dets, labels, masks, semantic, shape, scale in zip(
        *(outputs[name] for name in names), shapes, scales, strict=True
    ):
        present = labels >= 0
        boxes = dets[present, :4] * scale / scale  # as the graph does, which rounds
        pasted = pasted_masks.paste(masks[present], boxes, height, width, facts.mask_thr)
        stuff = resized(semantic, shape, (height, width))
        panoptic = fuse_instances(pasted, labels[present], stuff, facts)
        segments.append(Segments.of_map(panoptic, facts.num_classes))
    return segments
