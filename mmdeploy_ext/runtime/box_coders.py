"""From a head's outputs to boxes, written once for numpy and PyTorch: `xp` is either of the two modules.

A coder is a function of `CODERS`. It returns boxes (B, A, 4) xyxy in pixels, not clipped, and takes

- `xp`: numpy or torch.
- `priors`: of one level, (A, 4) xyxy or (A, 2) points; some coders take axes before these.
- `rows`: name of an output of the head -> its values at the priors, (B, A, columns).
- `coder`: its settings, those of `contract.dense_head`.
- `level`: index of the level, for settings that every level has.

`facts` are the metadata's entry about a dense head: `facts['head']` has the fields of
`contract.dense_head.Head`, `facts['coder']` the settings of the coder and its `type`.

Glossary: B images, A priors of a level, C classes, h, w size of a level's maps. Sources: mmdet 2.28.2
`core/bbox/coder`, `core/bbox/transforms.py` and the `_bbox_decode` of the heads that are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.geometry import sigmoid, softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

Rows = 'Mapping[str, Any]'
"""Output of a head -> its values at the priors of a level, (B, A, columns)."""
VOTES_ABOVE, VOTE_SPREAD = 0.01, 0.025
"""IoU above which a candidate votes about a box, and spread of the weights of votes, in PAA's score voting
(mmdet 2.28.2 `paa_head.py`)."""


def constant(values: Any, like: Any) -> Any:
    """Return numbers as an array or tensor of the type of `like`."""
    return like.new_tensor(values) if hasattr(like, 'new_tensor') else np.asarray(values, like.dtype)


def centres(priors: Any) -> Any:
    """Return the centres (A, 2) of anchors; points are their own. They may have axes before (A, 4 or 2)."""
    return priors if priors.shape[-1] == 2 else (priors[..., 2:] + priors[..., :2]) * 0.5


def delta(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`DeltaXYWHBBoxCoder`: moves in sizes of the anchor, logarithms of size ratios.

    The priors may have axes before (A, 4). With `pixel` 1 it is
    `LegacyDeltaXYWHBBoxCoder`: an anchor is one pixel larger than its corners are apart.
    Size ratios are 1 / `wh_ratio_clip` at most. With `ctr_clamp` moves are clipped to it, pixels, either way;
    without it moves are free, and size ratios are `wh_ratio_clip` at least.
    """
    centre = (priors[..., :2] + priors[..., 2:]) * 0.5
    size = priors[..., 2:] - priors[..., :2]
    if 'pixel' in coder:
        size = size + coder['pixel']
    deltas = rows['bbox_pred']
    deltas = deltas * constant(coder['stds'], deltas) + constant(coder['means'], deltas)
    bound = float(np.float32(abs(np.log(coder['wh_ratio_clip']))))
    move, clamp = size * deltas[..., :2], coder.get('ctr_clamp')
    centre = centre + (move if clamp is None else xp.clip(move, -clamp, clamp))
    growth = xp.clip(deltas[..., 2:], -bound if clamp is None else None, bound)
    half = size * xp.exp(growth) * 0.5
    return xp.concatenate([centre - half, centre + half], -1)


def guided(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`GuidedAnchorHead`: deltas of anchors whose sizes are outputs of the network.

    `coder['anchor_coder']` has the settings by which the sizes, the output `shape_pred`, are decoded.
    B is 1: the boxes of further images would get the anchors of the first.
    """
    shape = rows['shape_pred']
    grown = dict(bbox_pred=xp.concatenate([xp.zeros_like(shape), shape], -1))
    anchors = delta(xp, priors, grown, coder['anchor_coder'], level)[0]  # such heads take one image at a time
    return delta(xp, anchors, rows, coder, level)


def tblr(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`TBLRBBoxCoder`: distances to top, bottom, left, right, over the anchor's size times the normalizer.

    The priors may have axes before (A, 4).
    """
    size = priors[..., 2:] - priors[..., :2]
    normalizer = coder['normalizer']
    sides = rows['bbox_pred'] * (constant(normalizer, size) if np.ndim(normalizer) else normalizer)
    vertical, horizontal = size[..., 1:] * sides[..., :2], size[..., :1] * sides[..., 2:]
    x, y = (centres(priors)[..., axis : axis + 1] for axis in (0, 1))
    near = [x - horizontal[..., :1], y - vertical[..., :1]]
    return xp.concatenate([*near, x + horizontal[..., 1:], y + vertical[..., 1:]], -1)


def sides_of(xp: ModuleType, points: Any, sides: Any) -> Any:
    """Return boxes of the distances left, top, right, bottom (B, A, 4) of points (A, 2) or (B, A, 2).

    Boxes are (B, A, 4) xyxy.
    """
    return xp.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)


def distance(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`DistancePointBBoxCoder`: left, top, right, bottom in pixels. The priors may have axes before."""
    return sides_of(xp, centres(priors), rows['bbox_pred'])


def base_length(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`FoveaHead`: logarithms of the distances over a length per level."""
    return sides_of(xp, priors, xp.exp(rows['bbox_pred']) * coder['lengths'][level])


def integral(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`GFLHead`: the mean of a distribution per side, in strides."""
    bins = rows['bbox_pred'].reshape(*rows['bbox_pred'].shape[:2], 4, coder['bins'])
    mean = (softmax(bins) * constant([float(bin) for bin in range(coder['bins'])], bins)).sum(-1)
    return sides_of(xp, centres(priors), mean * coder['strides'][level])


def scaled(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`TOODHead`: boxes in strides; `RepPointsHead`, with `around_points`: those relative to the points."""
    boxes = rows['bbox_pred'] * coder['strides'][level]
    return boxes + xp.concatenate([priors, priors], -1) if coder['around_points'] else boxes


def yolo(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`YOLOBBoxCoder`: logits of the place in the cell, whose middle the anchor has; logs of size ratios.

    They are columns 0 to 3 of `pred_map`; objectness and classes follow.
    """
    pred = rows['pred_map']
    place = sigmoid(pred[..., :2])
    centre = (priors[:, :2] + priors[:, 2:]) * 0.5 + (place - 0.5) * coder['strides'][level]
    half = (priors[:, 2:] - priors[:, :2]) * 0.5 * xp.exp(pred[..., 2:4])
    return xp.concatenate([centre - half, centre + half], -1)


def yolox(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`YOLOXHead`: moves in strides, logarithms of sizes in strides."""
    stride = coder['strides'][level]
    centre = rows['bbox_pred'][..., :2] * stride + priors
    half = xp.exp(rows['bbox_pred'][..., 2:]) * stride / 2
    return xp.concatenate([centre - half, centre + half], -1)


def centre(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`CenterNetHead`: the place in the cell, whose first corner is the prior, and the size, in strides."""
    stride = coder['strides'][level]
    middle, half = priors / stride + rows['offset'], rows['wh'] / 2
    return xp.concatenate([middle - half, middle + half], -1) * stride


def peaks_of(xp: ModuleType, maps: Any, side: int) -> Any:
    """Return maps (B, C, h, w) with zeros where a cell of the `side` x `side` around has a higher value.

    `xp` is numpy or torch; `side` is an odd number.
    """
    edge = side // 2
    if hasattr(maps, 'new_tensor'):
        highest = xp.nn.functional.max_pool2d(maps, side, stride=1, padding=edge)
    else:
        padded = np.pad(maps, [(0, 0), (0, 0), (edge, edge), (edge, edge)], constant_values=-np.inf)
        rows = np.lib.stride_tricks.sliding_window_view(padded, side, 2).max(-1)
        highest = np.lib.stride_tricks.sliding_window_view(rows, side, 3).max(-1)
    return xp.where(highest == maps, maps, constant(0.0, maps))


def bucket_choice(xp: ModuleType, rows: Rows, coder: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the index of the best bucket per side (B, A, 4), and the confidence of the four (B, A).

    `rows` has the output `bbox_cls`; the sides are left, right, top, bottom. Buckets are counted from the
    edge of the enlarged anchor inwards.
    """
    buckets = coder['buckets']
    scores = softmax(rows['bbox_cls'].reshape(*rows['bbox_cls'].shape[:2], 4, buckets))
    best = scores.argmax(-1)
    index = constant(range(buckets), best)
    is_best = index == best[..., None]
    second = xp.where(is_best, constant(-1.0, scores), scores)
    runner_up = second.argmax(-1)
    beside = abs(best - runner_up) == 1
    top = xp.where(is_best, scores, constant(0.0, scores)).sum(-1)
    next_best = xp.where(index == runner_up[..., None], second, constant(0.0, scores)).sum(-1)
    confidence = top + xp.where(beside, next_best, constant(0.0, scores))
    return best, confidence.sum(-1) / 4


def bucket(xp: ModuleType, priors: Any, rows: Rows, coder: Mapping[str, Any], level: int) -> Any:
    """`BucketingBBoxCoder`: per side its bucket, and how far left of or above its middle, in buckets.

    Of the `num_buckets` along an axis a side may be in the `buckets` of its half. The priors may have axes
    before (A, 4).
    """
    best, _ = bucket_choice(xp, rows, coder)
    index = constant(range(coder['buckets']), best)
    offsets = rows['bbox_reg'].reshape(*rows['bbox_reg'].shape[:2], 4, coder['buckets'])
    offset = xp.where(index == best[..., None], offsets, constant(0.0, offsets)).sum(-1)
    if xp is np:
        best = best.astype(offset.dtype)  # integers times float32 would be float64
    centre, size = (priors[..., :2] + priors[..., 2:]) * 0.5, priors[..., 2:] - priors[..., :2]
    size = size * coder['scale_factor']
    low, high = centre - size * 0.5, centre + size * 0.5
    width, height = (size[..., axis : axis + 1] / coder['num_buckets'] for axis in (0, 1))

    def side(start: Any, step: Any, column: int, sign: int) -> Any:
        place = constant(0.5, offset) + constant(1.0, offset) * best[..., column : column + 1]
        return start + place * step * sign - offset[..., column : column + 1] * step

    # the columns of the outputs are left, right, top, bottom
    return xp.concatenate(
        [
            side(low[..., :1], width, 0, 1),
            side(low[..., 1:], height, 2, 1),
            side(high[..., :1], width, 1, -1),
            side(high[..., 1:], height, 3, -1),
        ],
        -1,
    )


CODERS: dict[str, Callable[..., Any]] = {
    coder.__name__: coder
    for coder in (delta, guided, tblr, distance, base_length, integral, scaled, yolo, yolox, centre, bucket)
}
"""Name in a file's metadata -> coder."""


def boxes_of(xp: ModuleType, facts: Mapping[str, Any], rows: Rows, priors: Any, level: int) -> Any:
    """Return the boxes (B, A, 4) of one level, xyxy in pixels, not clipped, by the coder of the facts."""
    return CODERS[facts['coder']['type']](xp, priors, rows, facts['coder'], level)


def scores_of(xp: ModuleType, facts: Mapping[str, Any], rows: Rows) -> Any:
    """Return the class scores (B, A, C) of one level in 0..1.

    They are -1 in cells in which guided anchors place no prior, see `Head.visible`.
    """
    head = facts['head']
    logits = rows[head['scores']]
    if head['first_class']:
        logits = logits[..., head['first_class'] :]
    scores = SCORES[head['activation']](logits)
    if head['visible']:
        visible = sigmoid(rows[head['visible']]) >= head['visible_thr']
        scores = xp.where(visible, scores, constant(-1.0, scores))
    return scores


def factors_of(xp: ModuleType, facts: Mapping[str, Any], rows: Rows) -> Any:
    """Return the factors of the scores (B, A) of one level in 0..1, such as centerness; None without them."""
    head = facts['head']
    if not head['factor']:
        return None
    if facts['coder']['type'] == 'bucket':
        return bucket_choice(xp, rows, facts['coder'])[1]
    name, column = head['factor_from']
    return sigmoid(rows[name][..., column])


SCORES: dict[str, Callable[..., Any]] = dict(
    sigmoid=sigmoid, softmax=lambda logits: softmax(logits)[..., :-1], none=lambda scores: scores
)
"""Activation -> class scores of the outputs; a softmax's last column, the background, is left out."""
