"""SMOKE without PyTorch: results of the outputs of files of any form, in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.monocular.runtime import decoding
from mmdeploy_ext.families.monocular.runtime.detections import MonocularDetections, padded_boxes
from mmdeploy_ext.families.monocular.runtime.results import (
    draw,
    from_padded,
    in_original_pixels,
    rows_of_camera,
)
from mmdeploy_ext.families.parts.runtime.box_coders import peaks_of

if TYPE_CHECKING:
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays

__all__ = ['detections', 'draw']


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[MonocularDetections]:
    """Turn the outputs of a graph of any form into results, see `runtime/family_runtime.py`.

    Feeds hold `input` and `cam2img`, and may hold `unmoved_cam2img`.
    """
    if metadata.form == 'full':
        return from_padded(outputs, feeds)
    facts, images = metadata.postprocess, []
    peaks = peaks_of(np, outputs['heat'], facts['window'])
    height, width = peaks.shape[2:]
    sides = feeds['input'].shape[2:]
    stride = np.float32([sides[1] / width, sides[0] / height])
    for index, scores in enumerate(peaks):
        flat = scores.ravel()
        best = np.argsort(-flat, kind='stable')[: facts['max_per_img']]
        best = best[flat[best] > np.float32(facts['score_thr'])]
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
