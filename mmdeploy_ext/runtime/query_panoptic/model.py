"""Detectors of queries that give panoptic maps, without PyTorch: numpy fusion of the `raw` form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.panoptic import Segments, fuse_queries, resized, segments_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.metadata import Metadata

RUNNERS = dict.fromkeys(('full', 'raw'), 'tools/onnx/onnx_with_postprocess.py')


def detections(
    metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> list[Segments]:
    """Return the segments per image.

    Args:
        metadata: of the file.
        outputs: of a `full` file `panoptic` (B, h, w); of a `raw` one `logits` (B, Q, C + 1) and
            `mask_logits` (B, Q, H4, W4).
        feeds: what was fed; of a `raw` file `img_shape` (B, 2) and `ori_shape` (2,) are used, too.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        return segments_of(outputs, facts['num_classes'])
    batch = len(outputs['logits'])
    shapes = feeds.get('img_shape', np.zeros((batch, 2), np.float32))
    original, found = feeds.get('ori_shape', np.zeros(2, np.int64)), []
    for logits, masks, shape in zip(outputs['logits'], outputs['mask_logits'], shapes, strict=True):
        panoptic = fuse_queries(logits, resized(masks, shape, original), facts)
        found.append(Segments.of_map(panoptic, facts['num_classes']))
    return found
