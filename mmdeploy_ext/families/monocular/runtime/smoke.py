"""SMOKE in numpy: results of pictures from the outputs of an exported file.

Glossary: B batch, C classes, n results, H, W network input in pixels, h, w cells of the head's maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.monocular.runtime import decoding
from mmdeploy_ext.families.monocular.runtime.decoding import (
    MonocularDetections,
    draw,
    from_padded,
    in_original_pixels,
    padded_boxes,
    rows_of_camera,
)
from mmdeploy_ext.runtime.box_coders import peaks_of
from mmdeploy_ext.runtime.detections import top_rows

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata

__all__ = ['detections', 'draw']

RESULT = MonocularDetections
CAMERA = 'cam2img'


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[MonocularDetections]:
    """Return the results of each picture of a batch, best first.

    Args:
        metadata: metadata of the file: `form` and `postprocess`.
        outputs: by name; 'raw': `heat` (B, C, h, w) float32, scores 0..1 of all cells, and `bbox_pred` (B, 8,
            h, w), see `decoding.smoke_boxes`; 'full': `boxes` (B, n, 7), `scores` (B, n), `labels` (B, n), -1
            for padding.
        feeds: `input` (B, 3, H, W); `cam2img` (B, 4, 4) float32, pixels of the network input; for results in
            original pixels `scale_factor` (B, 4), and to draw `unmoved_cam2img` (B, 4, 4).
    """
    if metadata.form == 'full':
        return from_padded(outputs, feeds)
    facts, images = metadata.postprocess, []
    peaks = peaks_of(np, outputs['heat'], facts.window)
    height, width = peaks.shape[2:]
    sides = feeds['input'].shape[2:]
    stride = np.float32([sides[1] / width, sides[0] / height])
    for index, scores in enumerate(peaks):
        flat = scores.ravel()
        best = top_rows(flat, facts.max_per_img)
        best = best[flat[best] > np.float32(facts.score_thr)]
        labels, y, x = np.unravel_index(best, scores.shape)
        values = outputs['bbox_pred'][index][:, y, x].T
        cells = np.stack([x, y], -1).astype(np.float32)
        batch = (values[None], cells[None], labels[None], feeds['cam2img'][index : index + 1])
        (boxes,) = decoding.smoke_boxes(np, *batch, stride, facts)
        images.append(
            MonocularDetections(
                padded_boxes(boxes),
                flat[best],
                labels.astype(np.int64),
                camera=rows_of_camera(feeds, index),
                code_size=boxes.shape[1],
            )
        )
    return in_original_pixels(images, feeds)
