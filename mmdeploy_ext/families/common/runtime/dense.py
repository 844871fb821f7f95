"""Raw outputs of dense heads to boxes and scores of all priors, in numpy.

Glossary: B batch, L levels, a priors of a cell, A priors of a level or of all, C classes, H, W network input
in pixels, h, w size of a level's maps.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.runtime.box_coders import peaks_of
from mmdeploy_ext.runtime.dense_facts import PRIOR_CHOICES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.dense_facts import DenseFacts
    from mmdeploy_ext.runtime.detections import Arrays


def level_shapes(height: int, width: int, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return (h, w) of each level: the quotients by `strides`, pixels, rounded up."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def priors_of(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], bases: Sequence[Sequence[Sequence[float]]]
) -> list[np.ndarray]:
    """Return the priors of each level (h * w * priors per cell, columns) float32, pixels, row by row.

    `bases` are the priors of its first cell: anchors xyxy, or points x, y.
    """
    levels = []
    for shape, stride, base in zip(shapes, strides, bases, strict=True):
        y, x = (cells.astype(np.float32) * stride for cells in np.indices(shape))
        columns = len(base[0])
        shifts = np.stack([x, y] * (columns // 2), axis=-1).reshape(-1, 1, columns)
        levels.append((shifts + np.asarray(base, np.float32)).reshape(-1, columns))
    return levels


def decode_raw(outputs: Arrays, height: int, width: int, facts: DenseFacts) -> dict[str, np.ndarray]:
    """Turn the outputs of a `raw` graph into the outputs of a `decode` graph.

    Args:
        outputs: `<name>_<level>` (B, a*columns, h, w) float32 for each entry of `head.outputs`, before
            `head.activation`.
        height: H, of the input.
        width: W, of the input.
        facts: the `postprocess` entry of the file's metadata.

    Returns:
        `boxes` (B, A, 4), `scores` (B, A, C), maybe the score factor (B, A), and `level_sizes` (L,).
    """
    head = facts.head
    shapes = _checked_shapes(outputs, height, width, facts)
    level_boxes, level_scores, level_factors = [], [], []
    for level, priors in enumerate(priors_of(shapes, facts.strides, facts.base_anchors)):
        rows = {}
        for name, columns in head.outputs:
            maps = outputs[f'{name}_{level}']
            if name == head.scores and head.peaks:
                maps = peaks_of(np, maps, head.peaks)
            rows[name] = maps.transpose(0, 2, 3, 1).reshape(maps.shape[0], -1, columns)
        level_boxes.append(facts.coder.boxes(np, priors, rows, level))
        level_scores.append(head.class_scores(np, rows))
        level_factors.append(head.score_factors(np, rows, facts.coder))
    decoded = dict(boxes=np.concatenate(level_boxes, 1), scores=np.concatenate(level_scores, 1))
    if head.factor:
        decoded[head.factor] = np.concatenate(level_factors, 1)
    decoded['level_sizes'] = np.asarray([boxes.shape[1] for boxes in level_boxes])
    return decoded


def _checked_shapes(outputs: Arrays, height: int, width: int, facts: DenseFacts) -> list[tuple[int, int]]:
    levels, head = range(len(facts.strides)), facts.head
    names = [f'{name}_{level}' for name, _ in head.outputs for level in levels]
    if missing := [name for name in names if name not in outputs]:
        raise ShapeError(f'{missing[0]}: is not an output of the graph, which has {", ".join(outputs)}')
    first = head.outputs[0][0]
    shapes = [tuple(outputs[f'{first}_{level}'].shape[2:]) for level in levels]
    expected = level_shapes(height, width, facts.strides)
    if shapes != expected and head.maps_by_stride:
        raise ShapeError(
            f'{first}_*: feature maps are {shapes}, expected {expected} for an input of '
            f'{height}x{width} (strides)'
        )
    for name in names:
        shape, expected_shape = outputs[name].shape[2:], shapes[int(name.rpartition('_')[2])]
        if tuple(shape) != expected_shape:
            raise ShapeError(f'{name}: is a map of {tuple(shape)}, expected {expected_shape} as in {first}_*')
    for level, base in enumerate(facts.base_anchors):
        for name, columns in head.outputs:
            channels, expected_channels = outputs[f'{name}_{level}'].shape[1], len(base) * columns
            if channels != expected_channels:
                unit = 'classes (num_classes)' if name == head.scores else 'columns (head.outputs)'
                raise ShapeError(
                    f'{name}_{level}: has {channels} channels, expected {expected_channels}: '
                    f'{columns} {unit} for {len(base)} priors per cell (base_anchors)'
                )
    return shapes


def rows_per_level(outputs: Arrays, height: int, width: int, facts: DenseFacts) -> list[int]:
    rows = outputs['boxes'].shape[1]
    if facts.head.maps_by_stride:
        shapes = level_shapes(height, width, facts.strides)
        sizes = [h * w * len(base) for (h, w), base in zip(shapes, facts.base_anchors, strict=True)]
        expected = f'{sum(sizes)} for an input of {height}x{width} (strides, base_anchors)'
    elif 'level_sizes' in outputs:
        sizes = [int(size) for size in outputs['level_sizes']]
        expected = f'{sum(sizes)} by level_sizes'
    else:
        raise ShapeError(
            'level_sizes: is not an output of the graph, but head.maps_by_stride=False requires it'
        )
    if sum(sizes) != rows:
        raise ShapeError(f'boxes: got {rows} rows, expected {expected}')
    return sizes


def sorted_rows(facts: DenseFacts, shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Return the rows of each level that the top-k of `nms_pre` sorts: priors, or pairs with a class."""
    of_prior = 1 if facts.head.choose in (*PRIOR_CHOICES, 'best') else facts.num_classes
    return [
        height * width * per_cell * of_prior
        for (height, width), per_cell in zip(shapes, facts.priors_per_cell, strict=True)
    ]


def largest_num_candidates(facts: DenseFacts, shapes: Sequence[tuple[int, int]]) -> int:
    """Return the largest number of boxes of a class before suppression."""
    limit = facts.nms_pre if facts.nms_pre > 0 else sys.maxsize
    of_row = facts.num_classes if facts.head.choose in PRIOR_CHOICES else 1
    return of_row * sum(min(count, limit) for count in sorted_rows(facts, shapes))
