"""Facts of a dense head: thresholds, priors, coder, and how outputs become candidates.

A prior is an anchor (x1, y1, x2, y2) or point (x, y) in pixels, a candidate a box with a class before NMS. B
images, A priors of a level, C classes, h, w of a level's map.
"""

import dataclasses
from types import ModuleType
from typing import Annotated, Any, Literal

from mmdeploy_ext.runtime.box_coders import AnyCoder, Bucket, Coder, Rows, Traced, class_scores, constant
from mmdeploy_ext.runtime.geometry import sigmoid
from mmdeploy_ext.spec.facts import Bounds, Count, Facts, Mismatch, NmsConfig, Stride

PRIOR_CHOICES = ('priors', 'class_priors', 'factor_priors')
Priors = tuple[Annotated[tuple[float, ...], Bounds(2, 4)], ...]


@dataclasses.dataclass(frozen=True)
class Head(Facts):
    """How a head's outputs become candidates.

    Attributes:
        outputs: (name, columns per prior); the graph has `<name>_<level>` (B, priors per cell * columns, h,
            w), channel `prior * columns + column`.
        scores: output with class scores.
        first_class: its column of the first class.
        activation: logits to scores; a softmax has the background last.
        factor: score factor in the `decode` form, or ''.
        factor_from: (output, column) of the factor's logits; () if the coder computes it or without a factor.
        root: results have the root of score * factor.
        choose: candidates per level: the `nms_pre` best 'pairs' (prior, class) by class score, or all classes
            of the `nms_pre` best 'priors' by result score, 'class_priors' by class score, 'factor_priors' by
            factor; uncut: 'best' class of each prior, 'all' pairs.
        judged: the threshold applies to the 'class' score or the 'product' with the factor (its root if
            `root`).
        inclusive: a score equal to the threshold passes.
        conf_thr: smallest factor; 0 keeps all.
        votes: average boxes with overlapping boxes (IoU above 0.01) of their class above the threshold,
            weighted exp(-(1 - IoU)^2 / 0.025) * score, as in PAA.
        clip_inset: pixels between the image's right and bottom border and the clip border.
        visible: output with logits (B, 1, h, w) of cells with priors (guided anchors, B = 1), or ''.
        visible_thr: smallest sigmoid of such cells.
        inverted: boxes may end before they begin; they skip NMS, as upstream.
        maps_by_stride: maps have ceil(H / stride) rows, columns likewise.
        peaks: side in cells of the square in which a score has to be its class's maximum; 0 keeps all.
        suppresses: apply NMS, per class unless `class_agnostic`.
        bordered: subtract the padding above and left (input `border`).
    """

    outputs: Annotated[tuple[tuple[str, Count], ...], Bounds(1, 8)]
    scores: str = 'cls_score'
    first_class: Annotated[int, Bounds(0, 64)] = 0
    activation: Literal['sigmoid', 'softmax', 'none'] = 'sigmoid'
    factor: str = ''
    factor_from: tuple[str | int, ...] = ()
    root: bool = False
    choose: Literal['pairs', 'priors', 'class_priors', 'factor_priors', 'best', 'all'] = 'pairs'
    judged: Literal['class', 'product'] = 'class'
    inclusive: bool = False
    conf_thr: float = 0.0
    votes: bool = False
    clip_inset: Annotated[float, Bounds(0)] = 0.0
    visible: str = ''
    visible_thr: float = 0.0
    inverted: bool = False
    maps_by_stride: bool = True
    peaks: Annotated[int, Bounds(0, 99)] = 0
    suppresses: bool = True
    bordered: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.outputs)

    @property
    def is_uncut(self) -> bool:
        return self.choose in ('best', 'all')

    def class_scores(self, xp: ModuleType, rows: Rows) -> Any:
        """Class scores (B, A, C) in 0..1 of a level; -1 in cells without guided anchors."""
        scores = class_scores(xp, self.activation, rows[self.scores][..., self.first_class :])
        if self.visible:
            visible = sigmoid(rows[self.visible]) >= self.visible_thr
            scores = xp.where(visible, scores, constant(-1.0, scores))
        return scores

    def score_factors(self, xp: ModuleType, rows: Rows, coder: Coder) -> Any:
        """Score factors (B, A) in 0..1 of a level, or None."""
        if not self.factor:
            return None
        if isinstance(coder, Bucket):
            return coder.choice(xp, rows)[1]
        name, column = self.factor_from
        return sigmoid(rows[name][..., column])

    def check(self) -> None:
        columns = dict(self.outputs)
        if len(columns) < len(self.outputs):
            raise Mismatch('head.outputs has a duplicate name')
        for key, name in (('scores', self.scores), ('visible', self.visible)):
            if name not in columns and (name or key == 'scores'):
                raise Mismatch(f'head.{key} is {name!r}, expected one of {", ".join(columns)}')
        if self.visible and columns[self.visible] != 1:
            raise Mismatch(f'head.visible is {self.visible!r}, expected an output of one column')
        if self.conf_thr > 0 and not self.factor:
            raise Mismatch(f'head.conf_thr is {self.conf_thr}, expected head.factor to compare with')
        if self.factor_from:
            name, column = self.factor_from if len(self.factor_from) == 2 else ('', 0)
            if not isinstance(column, int) or not 0 <= column < columns.get(name, 0):
                raise Mismatch(f'head.factor_from is {self.factor_from}, which is not in head.outputs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseFacts(NmsConfig):
    """The entry `postprocess` of a dense head's files.

    Attributes:
        strides: of x per level, pixels.
        base_anchors: priors of the first cell per level, xyxy or xy, pixels.
        num_classes: C.
    """

    clip_border: bool
    strides: Annotated[tuple[Stride, ...], Bounds(1, 64)]
    base_anchors: Annotated[tuple[Annotated[Priors, Bounds(1, 1024)], ...], Bounds(1, 64)]
    coder: AnyCoder
    head: Head
    num_classes: Count

    @property
    def priors_per_cell(self) -> list[int]:
        return [len(priors) for priors in self.base_anchors]

    @property
    def traced(self) -> tuple[str, ...]:
        return (self.coder.code.removeprefix('your '),) if isinstance(self.coder, Traced) else ()

    def check(self) -> None:
        levels = len(self.strides)
        if levels != len(self.base_anchors):
            raise Mismatch(f'strides has {levels} entries, base_anchors has {len(self.base_anchors)} entries')
        for key in ('strides', 'lengths'):
            if len(of_levels := getattr(self.coder, key, self.strides)) != levels:
                raise Mismatch(f'coder.{key} has {len(of_levels)} entries, expected one per level (strides)')
        sizes = {len(prior) for level in self.base_anchors for prior in level}
        allowed = (2,) if getattr(self.coder, 'around_points', False) else self.coder.prior_sizes
        if len(sizes) > 1 or not sizes <= set(allowed):
            raise Mismatch(
                f'base_anchors has entries of {", ".join(map(str, sorted(sizes)))} numbers, expected '
                f'{" or ".join(map(str, allowed))} for coder.type {self.coder.type!r}'
            )
        columns = dict(self.head.outputs)
        for name, count in self.coder.columns.items():
            if columns.get(name, 0) < count:
                raise Mismatch(f'head.outputs has no {name!r} with {count} columns, which coder.type needs')
        if self.head.factor and not self.head.factor_from and not isinstance(self.coder, Bucket):
            raise Mismatch('head.factor_from is empty, expected an output and its column for head.factor')
        classes = columns[self.head.scores] - self.head.first_class - (self.head.activation == 'softmax')
        if classes != self.num_classes:
            raise Mismatch(
                f'head.outputs has scores for {classes} classes, but num_classes is {self.num_classes}'
            )


def factor_head(num_classes: int, factor: str) -> Head:
    """Head of ATSS, FCOS and similar: sigmoid scores, four columns of `bbox_pred`, one factor."""
    outputs = (('cls_score', num_classes), ('bbox_pred', 4), (factor, 1))
    return Head(outputs, factor=factor, factor_from=(factor, 0))
