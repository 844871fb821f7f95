"""ATSS without PyTorch: numpy post-processing of the `decode` and `raw` forms, equal to the `full` form.

Glossary: B batch, L levels, A anchors of all levels, C classes, H, W network input in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.runtime.detections import Detections, candidates_lost, nms, results_from_padded, sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata

RUNNERS = {
    'full': 'tools/onnx/onnx_with_postprocess.py',
    'decode': 'tools/onnx/onnx_no_topk_nms.py',
    'raw': 'tools/onnx/onnx_no_topk_nms.py',
}


def level_shapes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return (h, w) of each level's feature map for an input of `height` x `width` pixels."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def anchors_xyxy(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    base_anchors: Sequence[Sequence[Sequence[float]]],
) -> list[np.ndarray]:
    """Return the anchors of each level, row by row: (h * w * anchors per cell, 4) float32, pixels."""
    levels = []
    for (height, width), stride, base in zip(shapes, strides, base_anchors, strict=True):
        x, y = np.meshgrid(
            np.arange(width, dtype=np.float32) * stride, np.arange(height, dtype=np.float32) * stride
        )
        shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        levels.append((shifts + np.asarray(base, np.float32)[None]).reshape(-1, 4))
    return levels


def decode_deltas(anchors: np.ndarray, deltas: np.ndarray, coder: Mapping[str, Any]) -> np.ndarray:
    """Apply DeltaXYWH regression to anchors.

    Args:
        anchors: (A, 4) xyxy pixels.
        deltas: (..., A, 4) network outputs.
        coder: `means`, `stds` and `wh_ratio_clip`.

    Returns:
        (..., A, 4) float32 xyxy, not clipped.
    """
    deltas = deltas * np.asarray(coder['stds'], np.float32) + np.asarray(coder['means'], np.float32)
    centre = (anchors[:, :2] + anchors[:, 2:]) * np.float32(0.5)
    size = anchors[:, 2:] - anchors[:, :2]
    bound = np.float32(abs(np.log(coder['wh_ratio_clip'])))
    centre = centre + size * deltas[..., :2]
    half = size * np.exp(np.clip(deltas[..., 2:], -bound, bound)) * np.float32(0.5)
    return np.concatenate([centre - half, centre + half], axis=-1).astype(np.float32)


def decode_raw(
    outputs: Mapping[str, np.ndarray], height: int, width: int, facts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Turn the outputs of a `raw` graph into those of a `decode` graph.

    Args:
        outputs: `cls_score_i` (B, a*C, h, w), `bbox_pred_i` (B, a*4, h, w), `centerness_i`.
        height: H of the network input.
        width: W of the network input.
        facts: the `postprocess` entry of the file's metadata.

    Returns:
        `boxes` (B, A, 4), `scores` (B, A, C), `centerness` (B, A).

    Raises:
        ShapeError: a feature map is not of the size that H and W give.
    """
    num_levels = len(facts['strides'])
    shapes = [outputs[f'cls_score_{level}'].shape[2:] for level in range(num_levels)]
    expected = level_shapes(height, width, facts['strides'])
    if [tuple(shape) for shape in shapes] != expected:
        raise ShapeError(
            f'cls_score_*: feature maps are {shapes}, expected {expected} for an input of '
            f'{height}x{width} (strides)'
        )
    for level, base in enumerate(facts['base_anchors']):
        given, wanted = outputs[f'cls_score_{level}'].shape[1], len(base) * facts['num_classes']
        if given != wanted:
            raise ShapeError(
                f'cls_score_{level}: has {given} channels, expected {wanted}: {facts["num_classes"]} classes '
                f'(num_classes) for {len(base)} anchors per cell (base_anchors)'
            )

    def rows(name: str, level: int, columns: int) -> np.ndarray:
        tensor = outputs[f'{name}_{level}']
        return tensor.transpose(0, 2, 3, 1).reshape(tensor.shape[0], -1, columns)

    levels = range(num_levels)
    anchors = anchors_xyxy(shapes, facts['strides'], facts['base_anchors'])
    boxes = [decode_deltas(anchors[level], rows('bbox_pred', level, 4), facts['coder']) for level in levels]
    scores = [sigmoid(rows('cls_score', level, facts['num_classes'])) for level in levels]
    centerness = [sigmoid(rows('centerness', level, 1))[..., 0] for level in levels]
    return dict(
        boxes=np.concatenate(boxes, 1),
        scores=np.concatenate(scores, 1),
        centerness=np.concatenate(centerness, 1),
    )


def _image_candidates(
    boxes: np.ndarray,
    scores: np.ndarray,
    centerness: np.ndarray,
    level_sizes: Sequence[int],
    facts: Mapping[str, Any],
) -> tuple[np.ndarray, ...]:
    """Threshold and top-k (anchor, class) pairs per level: boxes, final scores, labels."""
    start = 0
    anchors_kept, labels_kept = [], []
    for size in level_sizes:
        anchors, labels = np.nonzero(scores[start : start + size] > facts['score_thr'])
        order = np.argsort(-scores[start + anchors, labels], kind='stable')
        if facts['nms_pre'] > 0:
            order = order[: facts['nms_pre']]
        anchors_kept.append(start + anchors[order])
        labels_kept.append(labels[order])
        start += size
    anchors, labels = np.concatenate(anchors_kept), np.concatenate(labels_kept)
    return boxes[anchors], scores[anchors, labels] * centerness[anchors], labels


def postprocess_image(
    boxes: np.ndarray,
    scores: np.ndarray,
    centerness: np.ndarray,
    level_sizes: Sequence[int],
    clip_hw: Sequence[float],
    scale_factor: np.ndarray,
    facts: Mapping[str, Any],
) -> Detections:
    """Post-process one image exactly as the `full` graph and mmdet's `get_bboxes` do.

    Args:
        boxes: (A, 4) xyxy, pixels of the network input, not clipped.
        scores: (A, C) class scores after the sigmoid.
        centerness: (A,) after the sigmoid.
        level_sizes: anchors per level, which sum to A.
        clip_hw: height and width that boxes are clipped to.
        scale_factor: (4,) `w h w h` that boxes are divided by.
        facts: the `postprocess` entry of the file's metadata.

    Returns:
        At most `max_per_img` detections in descending score order.
    """
    bboxes, final, labels = _image_candidates(boxes, scores, centerness, level_sizes, facts)
    if facts['clip_border']:
        upper = np.asarray([clip_hw[1], clip_hw[0]] * 2, np.float32)
        bboxes = np.minimum(np.maximum(bboxes, np.float32(0)), upper)
    bboxes = bboxes / np.asarray(scale_factor, np.float32)
    separated = bboxes
    if len(bboxes) and not facts['class_agnostic']:
        separated = bboxes + (labels.astype(np.float32) * (bboxes.max() + np.float32(1)))[:, None]
    keep = nms(separated, final, facts['iou_threshold'])
    if facts['max_per_img'] > 0:
        keep = keep[: facts['max_per_img']]
    return Detections(bboxes[keep], final[keep], labels[keep].astype(np.int64))


def detections(
    metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> list[Detections]:
    """Turn the outputs of a graph of any form into detections.

    A `decode` file of `--score-form product` has no class scores of their own: the threshold looks at the
    product, which keeps fewer boxes than `full` does.

    Args:
        metadata: of the file.
        outputs: its outputs by name.
        feeds: what was fed: `input`, and `img_shape` and `scale_factor` where boxes have to know them.

    Returns:
        One `Detections` per image.
    """
    if metadata.form == 'full':
        found = results_from_padded(outputs)
        _check_cap(metadata, outputs, found)
        return found
    batch, _, height, width = feeds['input'].shape
    facts = metadata.postprocess
    if metadata.form == 'raw':
        outputs = decode_raw(outputs, height, width, facts)
    level_sizes = [
        h * w * len(base)
        for (h, w), base in zip(
            level_shapes(height, width, facts['strides']), facts['base_anchors'], strict=True
        )
    ]
    if sum(level_sizes) != outputs['boxes'].shape[1]:
        raise ShapeError(
            f'boxes: got {outputs["boxes"].shape[1]} rows, expected {sum(level_sizes)} for an input of '
            f'{height}x{width} (strides, base_anchors)'
        )
    centerness = outputs.get('centerness', np.ones(outputs['boxes'].shape[:2], np.float32))
    clip_hw = feeds.get('img_shape', np.full((batch, 2), [height, width], np.float32))
    scale_factor = feeds.get('scale_factor', np.ones((batch, 4), np.float32))
    return [
        postprocess_image(
            outputs['boxes'][image],
            outputs['scores'][image],
            centerness[image],
            level_sizes,
            clip_hw[image],
            scale_factor[image],
            facts,
        )
        for image in range(batch)
    ]


def _check_cap(metadata: Metadata, outputs: Mapping[str, np.ndarray], found: Sequence[Detections]) -> None:
    """Refuse detections of a file with `--max-candidates` that may lack some.

    Greedy suppression goes from the best score down: a full list of `max_per_img` lacks none.

    Raises:
        ModelFileError: candidates were cut off before the list was full.
    """
    cap, most = metadata.options.get('max_candidates', 0), metadata.postprocess['max_per_img']
    if not cap:
        return
    lacking = [
        int(count)
        for count, image in zip(outputs['candidates'], found, strict=True)
        if count > cap and (most < 0 or len(image) < most)
    ]
    if lacking:
        raise candidates_lost(max(lacking), cap)
