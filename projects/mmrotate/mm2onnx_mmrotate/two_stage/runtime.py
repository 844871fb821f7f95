"""From the outputs of files of two-stage detectors of rotated boxes to results, without PyTorch.

Glossary: B batch, K regions of an image, C classes, G boxes per region (C, or 1 for all classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.runtime import from_padded, sizes_of, suppressed
from mm2onnx_mmrotate.two_stage.coders import CODERS
from mmdeploy_ext.families.heads import class_scores

if TYPE_CHECKING:
    from mm2onnx_mmrotate.two_stage.facts import RotatedTwoStageFacts
    from mmdeploy_ext.runtime.detections import Arrays, Metadata

RESULT = RotatedDetections


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[RotatedDetections]:
    """Return the results per image, the best ones first.

    `metadata` are those of the file, `outputs` and `feeds` its outputs and inputs for a batch by name. Feeds
    hold `input`, and may hold `img_shape` (B or 1, 2), height and width before padding, and `scale_factor` (B
    or 1, 4) `w h w h`, with which boxes are in pixels of the originals, see `runtime.sizes_of`. A full graph
    has divided boxes by its own input `scale_factor`; here they are as it gave them.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        return from_padded(outputs, facts.angle_version)
    batch = len(outputs['regions' if metadata.form == 'raw' else 'boxes'])
    clip_hw, scale_factor = sizes_of(feeds, batch)
    if metadata.form == 'raw':
        outputs = decode_raw(outputs, clip_hw, facts)
    images = zip(outputs['boxes'], outputs['scores'], scale_factor, strict=True)
    return [_results(*image, facts) for image in images]


def decode_raw(outputs: Arrays, clip_hw: np.ndarray, facts: RotatedTwoStageFacts) -> dict[str, np.ndarray]:
    """Turn the outputs of a `raw` graph into those of a `decode` graph.

    Args:
        outputs: `regions` (B, K, 4) upright xyxy or (B, K, 5) rotated, `cls_score` (B, K, C + 1) and the
            others (B, K, G, columns).
        clip_hw: (B, 2) height and width of the contents of the input, pixels.
        facts: those of the file.

    Returns:
        `boxes` (B, K, G, 5) in pixels of the input, with the angle in radians, and `scores` (B, K, C) in
        0..1, without the background.
    """
    coder, regions = facts.coder, outputs['regions'][:, :, None]
    boxes = CODERS[coder.type](np, regions, outputs, coder, clip_hw.astype(np.float32))
    return dict(boxes=boxes, scores=class_scores(np, 'softmax', outputs['cls_score']))


def _results(
    boxes: np.ndarray, scores: np.ndarray, scale_factor: np.ndarray, facts: RotatedTwoStageFacts
) -> RotatedDetections:
    """Post-process one image: boxes (K, G, 5) and scores (K, C)."""
    boxes = boxes / np.append(scale_factor, 1).astype(np.float32)
    rows, labels = np.nonzero(scores > facts.score_thr)
    class_boxes = boxes[rows, np.minimum(labels, boxes.shape[1] - 1)]
    candidates = RotatedDetections(
        class_boxes, scores[rows, labels], labels.astype(np.int64), facts.angle_version
    )
    return suppressed(candidates, facts.iou_threshold, facts.max_per_img)
