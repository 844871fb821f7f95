"""Detectors of queries that give panoptic maps, without PyTorch: numpy fusion of the `raw` form.

Glossary: B batch, Q queries, C classes, H4, W4 a quarter of the network input, h, w size of the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.panoptic import Segments, fuse_queries, resized, segments_of

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays

RUNNERS = dict.fromkeys(('full', 'raw'), 'with_postprocess')
"""Form -> script that draws the results of such a file, see `runtime/family_runtime.py`."""


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Segments]:
    """Return the segments per image, see `runtime/family_runtime.py`.

    A `full` file gives `panoptic` (B, h, w), a `raw` one `logits` (B, Q, C + 1) and `mask_logits` (B, Q, H4,
    W4), for which `img_shape` (B, 2) and `ori_shape` (2,) of the feeds are used, too: height and width of
    the images before padding and of the results; 0, or none in the feeds, means the input size.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        return segments_of(outputs, facts['num_classes'])
    batch = len(outputs['logits'])
    shapes = feeds.get('img_shape', np.zeros((batch, 2), np.float32))
    original = feeds.get('ori_shape', np.zeros(2, np.int64))
    segments = []
    for logits, masks, shape in zip(outputs['logits'], outputs['mask_logits'], shapes, strict=True):
        panoptic = fuse_queries(logits, resized(masks, shape, original), facts)
        segments.append(Segments.of_map(panoptic, facts['num_classes']))
    return segments
