"""Dense heads without PyTorch: numpy post-processing of the `decode` and `raw` forms, equal to `full`.

Glossary: B batch, L levels, A priors of a level or of all, C classes, H, W network input in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.families.dense.runtime.select import Level, postprocess_image
from mmdeploy_ext.families.parts.runtime.box_coders import boxes_of, factors_of, peaks_of, scores_of
from mmdeploy_ext.runtime.detections import check_cap, results_from_padded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.detections import Arrays, Detections

RUNNERS = {
    'full': 'with_postprocess',
    'decode': 'no_topk_nms',
    'raw': 'no_topk_nms',
}


def level_shapes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return (h, w) of each level's feature map for an input of `height` x `width` pixels."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def priors_of(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], bases: Sequence[Sequence[Sequence[float]]]
) -> list[np.ndarray]:
    """Return the priors of each level, row by row: (h * w * priors per cell, columns) float32, pixels.

    `bases` are those of the first cell of each level: anchors xyxy, or points x, y.
    """
    levels = []
    for shape, stride, base in zip(shapes, strides, bases, strict=True):
        y, x = (cells.astype(np.float32) * stride for cells in np.indices(shape))
        columns = len(base[0])
        shifts = np.stack([x, y] * (columns // 2), axis=-1).reshape(-1, 1, columns)
        levels.append((shifts + np.asarray(base, np.float32)).reshape(-1, columns))
    return levels


def decode_raw(outputs: Arrays, height: int, width: int, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn the outputs of a `raw` graph into those of a `decode` graph.

    From `<kind>_<level>` (B, a*columns, h, w), as `head.outputs` of the facts says, to `boxes` (B, A, 4),
    `scores` (B, A, C), the score factor (B, A) where the head has one, and `level_sizes` (L,).

    Raises:
        ShapeError: a feature map is not of the size that H and W give, or has other channels.
    """
    shapes = _checked_shapes(outputs, height, width, facts)
    priors = priors_of(shapes, facts['strides'], facts['base_anchors'])
    levels = []
    for level, base in enumerate(priors):
        rows = {}
        for name, columns in facts['head']['outputs']:
            tensor = outputs[f'{name}_{level}']
            if name == facts['head']['scores'] and facts['head']['peaks']:
                tensor = peaks_of(np, tensor, facts['head']['peaks'])
            rows[name] = tensor.transpose(0, 2, 3, 1).reshape(tensor.shape[0], -1, columns)
        boxes = boxes_of(np, facts, rows, base, level)
        levels.append((boxes, scores_of(np, facts, rows), factors_of(np, facts, rows)))
    boxes, scores, factors = zip(*levels, strict=True)
    found = dict(boxes=np.concatenate(boxes, 1), scores=np.concatenate(scores, 1))
    if facts['head']['factor']:
        found[facts['head']['factor']] = np.concatenate(factors, 1)
    found['level_sizes'] = np.asarray([one.shape[1] for one in boxes])
    return found


def _checked_shapes(
    outputs: Arrays, height: int, width: int, facts: Mapping[str, Any]
) -> list[tuple[int, int]]:
    levels, head = range(len(facts['strides'])), facts['head']
    needed = [f'{name}_{level}' for name, _ in head['outputs'] for level in levels]
    if absent := [name for name in needed if name not in outputs]:
        raise ShapeError(f'{absent[0]}: is not an output of the graph, which has {", ".join(outputs)}')
    first = head['outputs'][0][0]
    shapes = [tuple(outputs[f'{first}_{level}'].shape[2:]) for level in levels]
    expected = level_shapes(height, width, facts['strides'])
    if shapes != expected and head['maps_by_stride']:
        raise ShapeError(
            f'{first}_*: feature maps are {shapes}, expected {expected} for an input of '
            f'{height}x{width} (strides)'
        )
    for level, base in enumerate(facts['base_anchors']):
        for name, columns in head['outputs']:
            given, wanted = outputs[f'{name}_{level}'].shape[1], len(base) * columns
            if given != wanted:
                what = 'classes (num_classes)' if name == head['scores'] else 'columns (head.outputs)'
                raise ShapeError(
                    f'{name}_{level}: has {given} channels, expected {wanted}: {columns} {what} for '
                    f'{len(base)} priors per cell (base_anchors)'
                )
    return shapes


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Turn the outputs of a graph of any form into detections, see `consumers`.

    A `decode` file of `--score-form product` has no class scores of their own: the threshold looks at the
    product, which keeps fewer boxes than `full` does. Feeds hold `input`, and `img_shape`, `scale_factor`
    and `border` where boxes have to know them.
    """
    if metadata.form == 'full':
        found = results_from_padded(outputs)
        check_cap(metadata, outputs, found)
        return found
    batch, _, height, width = feeds['input'].shape
    facts = metadata.postprocess
    if metadata.form == 'raw':
        outputs = decode_raw(outputs, height, width, facts)
    sizes = _level_sizes(outputs, height, width, facts)
    priors = Level(outputs['boxes'], outputs['scores'], outputs.get(facts['head']['factor']))
    clip_hw = feeds.get('img_shape', np.full((batch, 2), [height, width], np.float32))
    scale_factor = feeds.get('scale_factor', np.ones((batch, 4), np.float32))
    border = feeds.get('border', np.zeros((batch, 2), np.float32))
    return [
        postprocess_image(priors[image], sizes, clip_hw[image], scale_factor[image], facts, border[image])
        for image in range(batch)
    ]


def _level_sizes(outputs: Arrays, height: int, width: int, facts: Mapping[str, Any]) -> list[int]:
    """Return how many rows of boxes each level has."""
    rows = outputs['boxes'].shape[1]
    if facts['head']['maps_by_stride']:
        shapes = level_shapes(height, width, facts['strides'])
        sizes = [h * w * len(base) for (h, w), base in zip(shapes, facts['base_anchors'], strict=True)]
        expected = f'{sum(sizes)} for an input of {height}x{width} (strides, base_anchors)'
    elif 'level_sizes' in outputs:
        sizes = [int(size) for size in outputs['level_sizes']]
        expected = f'{sum(sizes)} by level_sizes'
    else:
        raise ShapeError('level_sizes: is not an output of the graph, which head.maps_by_stride says it has')
    if sum(sizes) != rows:
        raise ShapeError(f'boxes: got {rows} rows, expected {expected}')
    return sizes
