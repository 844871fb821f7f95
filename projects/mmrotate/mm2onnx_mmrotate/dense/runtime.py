"""One-stage heads of rotated boxes without PyTorch: numpy post-processing of `decode` and `raw` files.

Glossary: B batch, a priors of a cell, A priors of a level or of all, C classes, H, W network input in pixels,
h, w size of a level's maps.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_mmrotate.dense.coders import boxes_of, factors_of, scores_of
from mm2onnx_mmrotate.detections import RotatedDetections
from mm2onnx_mmrotate.draw import draw
from mm2onnx_mmrotate.runtime import best_of, from_padded, sizes_of, suppressed
from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.families.dense.runtime import level_shapes, priors_of
from mmdeploy_ext.runtime.detections import check_cap

if TYPE_CHECKING:
    from mm2onnx_mmrotate.dense.facts import RotatedDenseFacts
    from mmdeploy_ext.runtime.detections import Arrays, Metadata

__all__ = ['detections', 'draw']

RESULT = RotatedDetections


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[RotatedDetections]:
    """Turn the outputs of a graph of any form into rotated boxes per image, the best ones first.

    `metadata` are those of the file, `outputs` and `feeds` its outputs and inputs for a batch by name. Feeds
    hold `input`, and may hold `img_shape` (B or 1, 2), height and width before padding, and `scale_factor` (B
    or 1, 4) `w h w h`, with which boxes are in pixels of the originals, see `runtime.sizes_of`.

    Raises:
        ShapeError: as `decode_raw`, or the boxes of 'decode' are not as many as the input's size gives.
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
    sizes = [
        h * w * len(base)
        for (h, w), base in zip(level_shapes(height, width, facts.strides), facts.base_priors, strict=True)
    ]
    if sum(sizes) != outputs['boxes'].shape[1]:
        raise ShapeError(
            f'boxes: got {outputs["boxes"].shape[1]} rows, expected {sum(sizes)} for an input of '
            f'{height}x{width} (strides, base_priors)'
        )
    clip_hw, scale_factor = sizes_of(feeds, batch)
    factors = outputs.get('factors', [None] * batch)
    images = zip(outputs['boxes'], outputs['scores'], factors, clip_hw, scale_factor, strict=True)
    return [_results(*image, sizes, facts) for image in images]


def decode_raw(outputs: Arrays, height: int, width: int, facts: RotatedDenseFacts) -> dict[str, np.ndarray]:
    """Turn the outputs of a `raw` graph into those of a `decode` graph.

    Args:
        outputs: `<name>_<level>` (B, a*columns, h, w) for each entry of `head.outputs` of the facts.
        height: H, of the input.
        width: W, of the input.
        facts: those of the file.

    Returns:
        `boxes` (B, A, 5) in pixels of the input, not clipped, with the angle in radians, `scores` (B, A, C)
        in 0..1, of a sigmoid or softmax by the head, and the score `factors` (B, A) in 0..1 if the head has
        some.

    Raises:
        ShapeError: a feature map is missing, or is not of the size that H and W give, or has other channels.
    """
    shapes = level_shapes(height, width, facts.strides)
    decoded: dict[str, list[np.ndarray]] = dict(boxes=[], scores=[], factors=[])
    levels = priors_of(shapes, facts.strides, facts.base_priors)
    for level, (shape, base, priors) in enumerate(zip(shapes, facts.base_priors, levels, strict=True)):
        rows = {}
        for name, columns in facts.head.outputs:
            maps = outputs.get(f'{name}_{level}')
            if maps is None or maps.shape[1:] != (columns * len(base), *shape):
                got = 'not an output' if maps is None else f'of shape {maps.shape}'
                raise ShapeError(
                    f'{name}_{level}: is {got}; expected (B, {columns * len(base)}, {shape[0]}, {shape[1]}) '
                    f'for an input of {height}x{width}'
                )
            rows[name] = maps.transpose(0, 2, 3, 1).reshape(maps.shape[0], -1, columns)
        decoded['boxes'].append(boxes_of(np, facts, rows, boxes_of_anchors(priors), level))
        decoded['scores'].append(scores_of(np, facts, rows))
        factors = factors_of(np, facts, rows)
        if factors is not None:
            decoded['factors'].append(factors)
    return {name: np.concatenate(parts, 1) for name, parts in decoded.items() if parts}


def boxes_of_anchors(priors: np.ndarray) -> np.ndarray:
    """Return anchors (A, 4) xyxy as boxes (A, 5) of the angle 0; points (A, 2) stay as they are."""
    if priors.shape[1] == 2:
        return priors
    centres, sides = (priors[:, 2:] + priors[:, :2]) / 2, priors[:, 2:] - priors[:, :2]
    return np.concatenate([centres, sides, np.zeros_like(sides[:, :1])], 1)


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
    if facts.head.clips:
        upper = np.asarray([clip_hw[1], clip_hw[0]], np.float32) - 1
        boxes = np.concatenate([np.minimum(np.maximum(boxes[:, :2], 0), upper), boxes[:, 2:]], 1)
    boxes = boxes / np.append(scale_factor, 1).astype(np.float32)
    priors, labels = np.nonzero(scores > facts.score_thr)
    candidates = RotatedDetections(
        boxes[priors], ranks[priors, labels], labels.astype(np.int64), facts.angle_version
    )
    return suppressed(candidates, facts.iou_threshold, facts.max_per_img)
