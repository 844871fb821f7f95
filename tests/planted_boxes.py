"""What faults of several families change: suppression, clipping, priors, box coders, empty results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from planting import argument, called, result

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

SUPPRESSION = 'mmdeploy_ext.exporting.postprocess.suppression:Suppression.__call__'
BATCHED_NMS = 'mmdeploy_ext.exporting.ops.nms:batched_nms'
CLASS_OFFSETS = 'mmdeploy_ext.exporting.ops.nms:class_offsets'
CLIP = 'mmdeploy_ext.exporting.postprocess.suppression:clip_to'
LIMIT = 'mmdeploy_ext.exporting.postprocess.sizes:limit'
PRIORS = 'mmdeploy_ext.families.parts.dense_heads:generator_of'
BOXES_OF = 'mmdeploy_ext.families.parts.runtime.box_coders:boxes_of'
SCORES_OF = 'mmdeploy_ext.families.parts.runtime.box_coders:scores_of'
CLIP_SIZE = 'mmdeploy_ext.families.parts.image_tensors:clip_size'
APPLY = 'mmdeploy_ext.preprocess.pictures:PreprocessRule.apply'
GHOST = (0.0, 0.0, 9.0, 9.0, 0.9)
"""A box and its score."""


def five_percent(threshold: float) -> float:
    """Return a threshold that is 5 % higher."""
    return threshold * 1.05


def one_less(limit: int) -> int:
    """Return a limit that is one lower."""
    return limit - 1


def one_more(limit: int) -> int:
    """Return a limit that is one higher."""
    return limit + 1


def one_percent_less(limit: int) -> int:
    """Return a limit of 297 for 300, and of 99 for 100."""
    return limit - max(limit // 100, 1)


def first_of_batch(tensor: torch.Tensor) -> torch.Tensor:
    """Return what the first image has, for every image."""
    return tensor[:1].expand_as(tensor)


def swapped(size: torch.Tensor) -> torch.Tensor:
    """Return width and height (..., 2) in each other's place, or `w h w h` (..., 4) as `h w h w`."""
    return size.flip(-1)


def entry(**changes: Callable) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what changes entries of a dict within another one."""
    return lambda right: right | {name: change(right[name]) for name, change in changes.items()}


def wider(stds: list[float]) -> list[float]:
    """Return the deviations of a coder with widths 10 % larger."""
    return [*stds[:2], stds[2] * 1.1, stds[3]]


class Priors:
    """A generator of priors with a fault: `change` of the priors (A, 4) of a level, its size and number."""

    def __init__(self, generator: Any, change: Callable) -> None:
        self.generator, self.change = generator, change

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.__dict__['generator'], name)

    def single_level_grid_priors(self, size: Any, level: int, **settings: Any) -> torch.Tensor:
        """Return the faulty priors."""
        priors = self.generator.single_level_grid_priors(size, level, **settings)
        return self.change(priors, size, level)


def priors(change: Callable) -> Change:
    """Return a fault of the priors of a graph; see `Priors`."""
    return PRIORS, result(lambda generator, *_: Priors(generator, change))


def column_by_column(cells: torch.Tensor, size: Any, level: int) -> torch.Tensor:
    """Return priors in the order of columns, where maps are flattened row by row."""
    height, width = size
    return cells.reshape(height, width, -1, cells.shape[-1]).transpose(0, 1).reshape(cells.shape)


def found_where_nothing_is(
    results: tuple, self: Any, boxes: Any, scores: Any, labels: Any, candidates: Any, *_: Any
) -> tuple:
    """Return a box of 0.9 for images without a candidate; others get a row of padding more."""
    dets, kinds, *counts = results
    nothing = ~candidates.any(1, keepdim=True)
    dets, kinds = functional.pad(dets, (0, 0, 0, 1)), functional.pad(kinds, (0, 1), value=-1)
    dets = torch.where(nothing[..., None], dets.new_tensor(GHOST).expand_as(dets), dets)
    return dets, torch.where(nothing, torch.zeros_like(kinds), kinds), *counts


def single_result_lost(results: tuple, *_: Any) -> tuple:
    """Return results without the only one of an image that has no other."""
    dets, kinds, *others = results
    several = (kinds >= 0).sum(1, keepdim=True) > 1
    kept = torch.where(several[..., None], dets, torch.zeros_like(dets))
    return kept, torch.where(several, kinds, torch.full_like(kinds, -1)), *others


def ghost_beside_others(results: tuple, *_: Any) -> tuple:
    """Return a box of 0.9 for images without a result, where another image of the batch has some."""
    dets, kinds, *others = results
    nothing = (kinds < 0).all(1, keepdim=True) & (kinds >= 0).any()
    dets = torch.where(nothing[..., None], dets.new_tensor(GHOST).expand_as(dets), dets)
    return dets, torch.where(nothing, torch.zeros_like(kinds), kinds), *others


def padding_of_class_0(results: tuple, *_: Any) -> tuple:
    """Return results whose padding has the label 0."""
    dets, kinds, *others = results
    return dets, kinds.clamp(min=0), *others


def one_pixel_wider(boxes: torch.Tensor) -> torch.Tensor:
    """Return boxes (..., 4) as mmdet 1.x had them in a suppression: an area of (w + 1) * (h + 1)."""
    return boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])


OF_SUPPRESSION: dict[str, Change] = {
    'suppression: no offsets of classes': (CLASS_OFFSETS, called(lambda original, boxes, *_: boxes)),
    'suppression: classes are 60 pixels apart': (
        CLASS_OFFSETS,
        called(lambda original, boxes, labels, *_: boxes + 60.0 * labels[..., None]),
    ),
    'suppression: overlaps of boxes that are a pixel wider': (BATCHED_NMS, argument(0, one_pixel_wider)),
    'suppression: ten boxes are kept': (BATCHED_NMS, argument(3, lambda most: 10)),
    'suppression: only boxes that score more than 0.3': (
        BATCHED_NMS,
        argument(1, lambda scores: torch.where(scores > 0.3, scores, torch.full_like(scores, -1.0))),
    ),
    'nothing found: a box of 0.9': (SUPPRESSION, result(found_where_nothing_is)),
    'nothing found beside others: boxes of 0.9': (SUPPRESSION, result(ghost_beside_others)),
    'a single result is lost': (SUPPRESSION, result(single_result_lost)),
    'padding has the label 0': (SUPPRESSION, result(padding_of_class_0)),
}
"""Faults of `Suppression`, which several families have."""
OF_CLIPPING: dict[str, Change] = {
    'clipping: width and height change places': (CLIP, argument(1, swapped)),
    'clipping: to the size of the first image': (CLIP, argument(1, first_of_batch)),
    'clipping: one pixel inside the border': (CLIP, argument(1, lambda size: size - 1)),
    'clipping: not at the upper left': (
        CLIP,
        called(lambda original, boxes, *rest: torch.minimum(boxes, original(boxes, *rest))),
    ),
    'clipping: left out': (CLIP, called(lambda original, boxes, *_: boxes)),
}
"""Faults of clipping boxes to the image."""
OF_PRIORS: dict[str, Change] = {
    'priors: column by column': priors(column_by_column),
    'priors: half a stride off': priors(lambda cells, size, level: cells + 4 * 2**level),
    'priors: the last level a quarter wider': priors(
        lambda cells, size, level: cells * (1.25 if level == 4 else 1.0)
    ),
}
"""Faults of anchors of heads with five levels."""
OF_CODER: dict[str, Change] = {
    'boxes end a pixel early, as in mmdet 1.x': (
        BOXES_OF,
        result(lambda boxes, *_: boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])),
    ),
    'x and y of the centres change places': (
        BOXES_OF,
        called(lambda original, xp, facts, rows, *rest: original(xp, facts, _turned(rows), *rest)),
    ),
}
"""Faults of decoding deltas."""


def _turned(rows: Any) -> Any:
    deltas = rows['bbox_pred']
    return dict(rows, bbox_pred=torch.cat([deltas[..., [1, 0]], deltas[..., 2:]], -1))


frozen_limit = (LIMIT, result(lambda limit, *_: int(limit)))
"""How many are the best of a level is a number of the traced size."""
