"""One-stage heads of rotated boxes without PyTorch: numpy post-processing of `decode` and `raw` files.

Glossary: B batch, a priors of a cell, A priors of a level or of all, C classes, H, W network input in pixels,
h, w size of a level's maps.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.runtime import best_of, from_padded, sizes_of, suppressed
from mmdeploy_ext.families.heads import decode_raw, rows_per_level
from mmdeploy_ext.runtime.detections import check_cap

if TYPE_CHECKING:
    from mm2onnx_mmrotate.dense.facts import RotatedDenseFacts
    from mmdeploy_ext.runtime.detections import Arrays, Metadata

RESULT = RotatedDetections


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[RotatedDetections]:
    """Turn the outputs of a graph of any form into rotated boxes per image, the best ones first.

    `metadata` are those of the file, `outputs` and `feeds` its outputs and inputs for a batch by name. Feeds
    hold `input`, and may hold `img_shape` (B or 1, 2), height and width before padding, and `scale_factor` (B
    or 1, 4) `w h w h`, with which boxes are in pixels of the originals, see `runtime.sizes_of`.

    Raises:
        ShapeError: maps of 'raw', or the rows of 'decode', do not fit the input's size.
        ModelFileError: a file of the form 'full' left out candidates, and so maybe results, see `check_cap`.
    """
    facts = metadata.postprocess
    if metadata.form == 'full':
        results = from_padded(outputs, facts.angle_version)
        check_cap(metadata, outputs, results)
        return results
    batch, _, height, width = feeds['input'].shape
    if metadata.form == 'raw':
        outputs = decode_raw(outputs, height, width, facts)
    sizes = rows_per_level(outputs, height, width, facts)
    clip_hw, scale_factor = sizes_of(feeds, batch)
    factors = outputs.get('factors', [None] * batch)
    images = zip(outputs['boxes'], outputs['scores'], factors, clip_hw, scale_factor, strict=True)
    return [_results(*image, sizes, facts) for image in images]


def _results(
    boxes: np.ndarray,
    scores: np.ndarray,
    factors: np.ndarray | None,
    clip_hw: np.ndarray,
    scale_factor: np.ndarray,
    level_sizes: list[int],
    facts: RotatedDenseFacts,
) -> RotatedDetections:
    """Post-process one image: its decoded priors of all levels, and height and width that centres end at."""
    ranks = scores if factors is None else scores * factors[:, None]
    ends = np.cumsum(level_sizes)
    level_rows = [
        start + best_of(ranks[start:end].max(1), facts.nms_pre)
        for start, end in itertools.pairwise([0, *ends])
    ]
    rows = np.concatenate(level_rows)
    boxes, scores, ranks = boxes[rows], scores[rows], ranks[rows]
    if facts.clip_border:
        upper = np.asarray([clip_hw[1], clip_hw[0]], np.float32) - 1
        boxes = np.concatenate([np.minimum(np.maximum(boxes[:, :2], 0), upper), boxes[:, 2:]], 1)
    boxes = boxes / np.append(scale_factor, 1).astype(np.float32)
    priors, labels = np.nonzero(scores > facts.score_thr)
    candidates = RotatedDetections(
        boxes[priors], ranks[priors, labels], labels.astype(np.int64), facts.angle_version
    )
    return suppressed(candidates, facts.iou_threshold, facts.max_per_img)
