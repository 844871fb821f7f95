"""From a head's outputs to boxes, for numpy and PyTorch alike.

`boxes` of a coder takes `xp` (numpy or torch), `priors` of a level ((A, 4) xyxy or (A, 2) points, some with
axes before), `rows` (output -> (B, A, columns)) and the `level`, and returns boxes (B, A, 4) xyxy in pixels,
unclipped.

B images, A priors, C classes, h, w of a level's maps. Sources: mmdet 2.28.2 `core/bbox/coder`,
`core/bbox/transforms.py` and `_bbox_decode` of the named heads.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.runtime.geometry import sigmoid, softmax
from mmdeploy_ext.spec.facts import Bounds, Count, Facts, Positive, Stride, optional

Rows = Mapping[str, Any]
"""Output of a head -> its values at the priors of a level, (B, A, columns)."""
VOTES_ABOVE, VOTE_SPREAD = 0.01, 0.025
"""IoU above which a candidate votes, and spread of votes, in PAA (mmdet 2.28.2 `paa_head.py`)."""
Numbers = tuple[float, float, float, float]
Scales = tuple[Positive, Positive, Positive, Positive]
OfLevels = Annotated[tuple[Stride, ...], Bounds(1, 64)]


def constant(values: Any, like: Any) -> Any:
    return like.new_tensor(values) if hasattr(like, 'new_tensor') else np.asarray(values, like.dtype)


def centres(priors: Any) -> Any:
    """Centres (..., A, 2) of anchors; points are their own."""
    return priors if priors.shape[-1] == 2 else (priors[..., 2:] + priors[..., :2]) * 0.5


def sides_of(xp: ModuleType, points: Any, sides: Any) -> Any:
    """Boxes (B, A, 4) of distances left, top, right, bottom (B, A, 4) from points (..., A, 2)."""
    return xp.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coder(Facts):
    """Settings of a coder; `type` is its name in files.

    Attributes:
        prior_sizes: numbers per prior: 4 for anchors, 2 for points.
        inverts: boxes may end before they begin.
    """

    prior_sizes: ClassVar[tuple[int, ...]] = (2, 4)
    inverts: ClassVar[bool] = False
    type: str

    @property
    def columns(self) -> Mapping[str, int]:
        """Output -> columns per prior that the coder reads."""
        return dict(bbox_pred=4)

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced(Coder):
    """A method of the user's, in `decode` and `full` graphs alone."""

    code: str
    inverts = True
    type: Literal['traced'] = 'traced'

    @property
    def columns(self) -> Mapping[str, int]:
        return {}

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        raise ModelFileError(
            f'boxes are decoded by {self.code}, which needs PyTorch; export with --postprocess decode or '
            'full to run without PyTorch'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta(Coder):
    """`DeltaXYWHBBoxCoder`: moves in anchor sizes, logarithms of size ratios.

    `pixel` 1 is `LegacyDeltaXYWHBBoxCoder`. Size ratios are at most 1 / `wh_ratio_clip`, and without
    `ctr_clamp` at least `wh_ratio_clip`; `ctr_clamp` clips moves, in pixels. 'guided' is `GuidedAnchorHead`
    (B = 1): `anchor_coder` decodes anchor sizes from `shape_pred`.
    """

    means: Numbers
    stds: Scales
    wh_ratio_clip: Positive = 0.016
    ctr_clamp: float | None = optional()
    pixel: float = optional(0.0)
    anchor_coder: 'Delta | None' = optional()
    prior_sizes = (4,)
    type: Literal['delta', 'guided'] = 'delta'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(bbox_pred=4, shape_pred=2) if self.anchor_coder else dict(bbox_pred=4)

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        if self.anchor_coder:
            shape = rows['shape_pred']
            grown = xp.concatenate([xp.zeros_like(shape), shape], -1)
            priors = self.anchor_coder.moved(xp, priors, grown)[0]  # such heads take one image at a time
        return self.moved(xp, priors, rows['bbox_pred'])

    def moved(self, xp: ModuleType, priors: Any, deltas: Any) -> Any:
        centre = (priors[..., :2] + priors[..., 2:]) * 0.5
        size = priors[..., 2:] - priors[..., :2]
        if self.pixel:
            size = size + self.pixel
        deltas = deltas * constant(self.stds, deltas) + constant(self.means, deltas)
        bound = float(np.float32(abs(np.log(self.wh_ratio_clip))))
        move, clamp = size * deltas[..., :2], self.ctr_clamp
        centre = centre + (move if clamp is None else xp.clip(move, -clamp, clamp))
        growth = xp.clip(deltas[..., 2:], -bound if clamp is None else None, bound)
        half = size * xp.exp(growth) * 0.5
        return xp.concatenate([centre - half, centre + half], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tblr(Coder):
    """`TBLRBBoxCoder`: distances top, bottom, left, right over anchor size times normalizer."""

    normalizer: Positive | Scales
    prior_sizes = (4,)
    inverts = True
    type: Literal['tblr'] = 'tblr'

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        size = priors[..., 2:] - priors[..., :2]
        scale = self.normalizer
        sides = rows['bbox_pred'] * (constant(scale, size) if isinstance(scale, tuple) else scale)
        vertical, horizontal = size[..., 1:] * sides[..., :2], size[..., :1] * sides[..., 2:]
        x, y = (centres(priors)[..., axis : axis + 1] for axis in (0, 1))
        near = [x - horizontal[..., :1], y - vertical[..., :1]]
        return xp.concatenate([*near, x + horizontal[..., 1:], y + vertical[..., 1:]], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance(Coder):
    """`DistancePointBBoxCoder`: left, top, right, bottom in pixels."""

    inverts = True
    type: Literal['distance'] = 'distance'

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        return sides_of(xp, centres(priors), rows['bbox_pred'])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseLength(Coder):
    """`FoveaHead`: logarithms of distances over a length per level."""

    lengths: Annotated[tuple[Positive, ...], Bounds(1, 64)]
    prior_sizes = (2,)
    type: Literal['base_length'] = 'base_length'

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        return sides_of(xp, priors, xp.exp(rows['bbox_pred']) * self.lengths[level])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Integral(Coder):
    """`GFLHead`: mean of a distribution of `bins` entries per side, in strides."""

    bins: Count
    strides: OfLevels
    type: Literal['integral'] = 'integral'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(bbox_pred=4 * self.bins)

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        bins = rows['bbox_pred'].reshape(*rows['bbox_pred'].shape[:2], 4, self.bins)
        mean = (softmax(bins) * constant([float(bin) for bin in range(self.bins)], bins)).sum(-1)
        return sides_of(xp, centres(priors), mean * self.strides[level])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(Coder):
    """`TOODHead`: boxes in strides; `RepPointsHead` with `around_points`: relative to points."""

    strides: OfLevels
    around_points: bool
    inverts = True
    type: Literal['scaled'] = 'scaled'

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        boxes = rows['bbox_pred'] * self.strides[level]
        return boxes + xp.concatenate([priors, priors], -1) if self.around_points else boxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yolo(Coder):
    """`YOLOBBoxCoder`: logits of the place in the cell, logarithms of size ratios."""

    strides: OfLevels
    prior_sizes = (4,)
    type: Literal['yolo'] = 'yolo'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(pred_map=4)

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        pred = rows['pred_map']
        place = sigmoid(pred[..., :2])
        centre = (priors[:, :2] + priors[:, 2:]) * 0.5 + (place - 0.5) * self.strides[level]
        half = (priors[:, 2:] - priors[:, :2]) * 0.5 * xp.exp(pred[..., 2:4])
        return xp.concatenate([centre - half, centre + half], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yolox(Coder):
    """`YOLOXHead`: moves and logarithms of sizes in strides."""

    strides: OfLevels
    prior_sizes = (2,)
    type: Literal['yolox'] = 'yolox'

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        stride = self.strides[level]
        centre = rows['bbox_pred'][..., :2] * stride + priors
        half = xp.exp(rows['bbox_pred'][..., 2:]) * stride / 2
        return xp.concatenate([centre - half, centre + half], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Centre(Coder):
    """`CenterNetHead`: place in the cell and size, in strides."""

    strides: OfLevels
    prior_sizes = (2,)
    type: Literal['centre'] = 'centre'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(wh=2, offset=2)

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        stride = self.strides[level]
        middle, half = priors / stride + rows['offset'], rows['wh'] / 2
        return xp.concatenate([middle - half, middle + half], -1) * stride


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket(Coder):
    """`BucketingBBoxCoder`: bucket per side, and offset left of or above its middle, in buckets.

    A prior times `scale_factor` has `num_buckets` per axis; a side is in the `buckets` of its half.
    """

    buckets: Count
    num_buckets: Count
    scale_factor: Positive
    prior_sizes = (4,)
    inverts = True
    type: Literal['bucket'] = 'bucket'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(bbox_cls=4 * self.buckets, bbox_reg=4 * self.buckets)

    def choice(self, xp: ModuleType, rows: Rows) -> tuple[Any, Any]:
        """Best bucket per side (B, A, 4: left, right, top, bottom), and confidence (B, A)."""
        scores = softmax(rows['bbox_cls'].reshape(*rows['bbox_cls'].shape[:2], 4, self.buckets))
        best = scores.argmax(-1)
        index = constant(range(self.buckets), best)
        is_best = index == best[..., None]
        second = xp.where(is_best, constant(-1.0, scores), scores)
        runner_up = second.argmax(-1)
        beside = abs(best - runner_up) == 1
        top = xp.where(is_best, scores, constant(0.0, scores)).sum(-1)
        next_best = xp.where(index == runner_up[..., None], second, constant(0.0, scores)).sum(-1)
        confidence = top + xp.where(beside, next_best, constant(0.0, scores))
        return best, confidence.sum(-1) / 4

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        best, _ = self.choice(xp, rows)
        index = constant(range(self.buckets), best)
        offsets = rows['bbox_reg'].reshape(*rows['bbox_reg'].shape[:2], 4, self.buckets)
        offset = xp.where(index == best[..., None], offsets, constant(0.0, offsets)).sum(-1)
        if xp is np:
            best = best.astype(offset.dtype)  # integers times float32 would be float64
        centre, size = (priors[..., :2] + priors[..., 2:]) * 0.5, priors[..., 2:] - priors[..., :2]
        size = size * self.scale_factor
        low, high = centre - size * 0.5, centre + size * 0.5
        width, height = (size[..., axis : axis + 1] / self.num_buckets for axis in (0, 1))

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


AnyCoder = Delta | Tblr | Distance | BaseLength | Integral | Scaled | Yolo | Yolox | Centre | Bucket | Traced


def peaks_of(xp: ModuleType, maps: Any, side: int) -> Any:
    """Zero all cells of maps (B, C, h, w) below the maximum of `side` x `side` (odd) cells around."""
    edge = side // 2
    if hasattr(maps, 'new_tensor'):
        highest = xp.nn.functional.max_pool2d(maps, side, stride=1, padding=edge)
    else:
        padded = np.pad(maps, [(0, 0), (0, 0), (edge, edge), (edge, edge)], constant_values=-np.inf)
        rows = np.lib.stride_tricks.sliding_window_view(padded, side, 2).max(-1)
        highest = np.lib.stride_tricks.sliding_window_view(rows, side, 3).max(-1)
    return xp.where(highest == maps, maps, constant(0.0, maps))


def class_scores(xp: ModuleType, activation: str, logits: Any) -> Any:
    """Class scores of a head's output, without a softmax's background."""
    if activation == 'softmax':
        return softmax(logits)[..., :-1]
    return sigmoid(logits) if activation == 'sigmoid' else logits
