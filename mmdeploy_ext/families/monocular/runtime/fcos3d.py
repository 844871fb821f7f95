"""FCOS3D and PGD in numpy: results of pictures from the outputs of an exported file.

Glossary: B batch, A cells of a level or of all, C classes, D values of a box, H, W network input in pixels,
h, w size of a level's maps, n results.
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
from mmdeploy_ext.runtime.bird_eye import rotated_nms
from mmdeploy_ext.runtime.detections import top_rows

if TYPE_CHECKING:
    from mmdeploy_ext.families.monocular.facts import PointsFacts
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata

__all__ = ['detections', 'draw']

RESULT = MonocularDetections
CAMERA = 'cam2img'


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[MonocularDetections]:
    """Return the results of each picture of a batch, best first.

    Args:
        metadata: metadata of the file: `form` and `postprocess`.
        outputs: by name; 'raw': see `decoded`; 'decode', with B first: see `best_boxes`; 'full': `boxes` (B,
            n, 7 or 9), `scores` (B, n), `labels` (B, n), -1 for padding, and maybe `attributes` (B, n) and
            `bboxes` (B, n, 4).
        feeds: `input` (B, 3, H, W); `cam2img` (B, 4, 4) float32, pixels of the network input; and optionally
            `img_shape` (B, 2), h, w to clip 2D boxes to (0: input size), `scale_factor` (B, 4) `w h w h`,
            input / original, which divides 2D boxes, `unmoved_cam2img` (B, 4, 4), to draw with.
    """
    if metadata.form == 'full':
        return from_padded(outputs, feeds)
    facts = metadata.postprocess
    _, _, height, width = feeds['input'].shape
    sizes = [(-(-height // stride), -(-width // stride)) for stride in facts.strides]
    if metadata.form == 'raw':
        outputs = decoded(outputs, feeds, sizes, facts)
    counts = [rows * columns for rows, columns in sizes]
    images = [
        best_boxes({name: array[index] for name, array in outputs.items()}, counts, facts)
        for index in range(len(outputs['boxes']))
    ]
    images = [
        MonocularDetections(*columns, camera=rows_of_camera(feeds, index), code_size=facts.code_size)
        for index, columns in enumerate(images)
    ]
    return in_original_pixels(images, feeds)


def decoded(
    outputs: Arrays, feeds: Arrays, sizes: list[tuple[int, int]], facts: PointsFacts
) -> dict[str, np.ndarray]:
    """Decode the form 'raw' (maps (B, columns, h, w), such as `cls_score_0`) to the form 'decode'."""
    levels: list[dict[str, np.ndarray]] = []
    clip_hw = np.full((len(feeds['input']), 2), feeds['input'].shape[2:], np.float32)
    if 'img_shape' in feeds:  # 0 means the size of the input, as in the graphs
        clip_hw = np.where(feeds['img_shape'] > 0, feeds['img_shape'], clip_hw)
    for level, (stride, (height, width)) in enumerate(zip(facts.strides, sizes, strict=True)):
        rows = {
            name.rpartition('_')[0]: maps.transpose(0, 2, 3, 1).reshape(len(maps), -1, maps.shape[1])
            for name, maps in outputs.items()
            if name.rpartition('_')[2] == str(level)
        }
        y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32) * stride + stride // 2
        points = np.stack([x, y], -1)
        levels.append(decoding.rows_of_results(np, rows, points, feeds['cam2img'], clip_hw, facts))
    return {name: np.concatenate([values[name] for values in levels], 1) for name in levels[0]}


def best_boxes(
    decoded: Arrays, counts: list[int], facts: PointsFacts
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the results of one picture, best first, of its outputs of the form 'decode'.

    `boxes` (A, D), `scores` (A, C), and maybe `attr_pred` (A, attributes) and `bboxes` (A, 4); `counts` are
    the cells of each level.

    Returns:
        Boxes (n, 9) float32, scores (n,), labels (n,) int64, attributes (n,) int64 and 2D boxes (n, 4) xyxy
            or None.
    """
    cells_of_levels, start = [], 0
    for count in counts:
        ranks = decoded['scores'][start : start + count].max(1)
        order = np.argsort(-ranks, kind='stable')
        best = order[: facts.nms_pre] if facts.nms_pre > 0 else np.arange(count)
        cells_of_levels.append(start + best)
        start += count
    cells = np.concatenate(cells_of_levels)
    boxes, scores = decoded['boxes'][cells], decoded['scores'][cells]
    above = decoding.seen_from_above(np, boxes)
    rows, labels = [], []
    for label in range(scores.shape[1]):
        candidates = np.flatnonzero(scores[:, label] > np.float32(facts.score_thr))
        candidates = candidates[np.argsort(-scores[candidates, label], kind='stable')]
        rows_of_class = candidates[rotated_nms(above[candidates], facts.nms_thr)]
        rows.append(rows_of_class)
        labels.append(np.full_like(rows_of_class, label))
    row, label = np.concatenate(rows), np.concatenate(labels)
    order = top_rows(scores[row, label], facts.max_per_img)
    row, label = row[order], label[order]
    attributes = decoded['attr_pred'][cells[row]].argmax(1) if facts.attributes else None
    corners = decoded['bboxes'][cells[row]] if facts.sides else None
    return padded_boxes(boxes[row]), scores[row, label], label, attributes, corners
