"""The facts of a dense head: thresholds, priors, coder, and how outputs become candidates.

Glossary: a level is the feature map of one stride, with the same priors in each of its cells; a prior is an
anchor (x1, y1, x2, y2) or a point (x, y), in pixels. A score factor is a second score of each prior, such as
centerness, that class scores are multiplied with. A candidate is a box with a class, before boxes that
overlap a better one are suppressed. B images, A priors of a level, C classes, H height of the input, h, w
rows and columns of a level's map.
"""

import dataclasses
from types import ModuleType
from typing import Annotated, Any, Literal

from mmdeploy_ext.contract.facts import Bounds, Count, Facts, Mismatch, Stride
from mmdeploy_ext.contract.nms import NmsConfig
from mmdeploy_ext.runtime.box_coders import AnyCoder, Bucket, Coder, Rows, Traced, class_scores, constant
from mmdeploy_ext.runtime.geometry import sigmoid

PRIOR_CHOICES = ('priors', 'class_priors', 'factor_priors')
"""Values of `Head.choose` by which priors remain with all their classes."""
Priors = tuple[Annotated[tuple[float, ...], Bounds(2, 4)], ...]


@dataclasses.dataclass(frozen=True)
class Head(Facts):
    """How a head's outputs become candidates.

    Attributes:
        outputs: (name, columns per prior) of each kind of output; the graph's are `<name>_<level>`
            (B, priors per cell * columns, h, w), in which the columns of a prior are side by side: channel
            `prior * columns + column`.
        scores: name of the output with class scores.
        first_class: column of this output that has the first class.
        activation: function from logits to scores; the last column of a softmax is the background.
        factor: name of the score factor in the `decode` form; '' if there is none.
        factor_from: (name of the output, column) of the factor's logits; empty if the coder computes it, or
            if there is none.
        root: whether results have, and are ordered by, the root of score * factor instead of the product.
        choose: which candidates of a level remain. 'pairs': the `nms_pre` best (prior, class) pairs by class
            scores; 'priors': all classes of the `nms_pre` best priors, by the best number that a result of
            theirs would be ordered by; 'class_priors' and 'factor_priors': the same, but the best by class
            scores alone, or by the factor; 'best': the best class of each prior, and 'all': all pairs,
            neither of them cut to `nms_pre`.
        judged: what the score threshold is compared with: 'class' scores, or their 'product' with the factor,
            of which `root` takes the root.
        inclusive: whether a score that equals the threshold passes.
        conf_thr: candidates with a smaller factor are left out; 0 leaves none out.
        votes: whether boxes are replaced by a mean of the boxes of their class that overlap them (IoU above
            0.01) and pass the score threshold, with the weights exp(-(1 - IoU)^2 / 0.025) * score, as in PAA.
        clip_inset: pixels between the right and bottom border of the image and the one to which boxes are
            clipped.
        visible: name of the output with logits (B, 1, h, w) of cells with priors; '' if every cell has some.
            Such heads (guided anchors) take one image at a time.
        visible_thr: score, after the sigmoid, from which on a cell has priors.
        inverted: whether boxes that are suppressed may end before they begin. Upstream neither suppresses
            these nor others by them.
        maps_by_stride: whether feature maps have ceil(H / stride) rows, and columns likewise.
        peaks: side, in cells, of the square around a cell in which its score has to be the highest of the
            class, else it becomes zero; 0 keeps all scores.
        suppresses: whether boxes that overlap a better one of their class, or of any if `class_agnostic`, are
            left out.
        bordered: whether the padding above and left of the image (input `border`) is subtracted from boxes.
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
        """Names of the outputs, without levels."""
        return tuple(name for name, _ in self.outputs)

    @property
    def is_uncut(self) -> bool:
        """Whether `nms_pre` is not read."""
        return self.choose in ('best', 'all')

    def class_scores(self, xp: ModuleType, rows: Rows) -> Any:
        """Return class scores (B, A, C) in 0..1 of one level; -1 in cells without guided anchors."""
        scores = class_scores(xp, self.activation, rows[self.scores][..., self.first_class :])
        if self.visible:
            visible = sigmoid(rows[self.visible]) >= self.visible_thr
            scores = xp.where(visible, scores, constant(-1.0, scores))
        return scores

    def score_factors(self, xp: ModuleType, rows: Rows, coder: Coder) -> Any:
        """Return the factors of the scores (B, A) in 0..1 of one level; None without them."""
        if not self.factor:
            return None
        if isinstance(coder, Bucket):
            return coder.choice(xp, rows)[1]
        name, column = self.factor_from
        return sigmoid(rows[name][..., column])

    def check(self) -> None:
        """Raise Mismatch if fields name outputs or columns that the head does not have."""
        columns = dict(self.outputs)
        if len(columns) < len(self.outputs):
            raise Mismatch('head.outputs has a name twice')
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
                raise Mismatch(f'head.factor_from is {self.factor_from}, which head.outputs does not have')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseFacts(NmsConfig):
    """The entry `postprocess` of a dense head's files.

    Attributes:
        clip_border: whether boxes are clipped to the image.
        strides: of x, per level, pixels.
        base_anchors: of each level the priors of its first cell: anchors xyxy or points xy, pixels.
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
        """Number of priors of a cell, per level."""
        return [len(priors) for priors in self.base_anchors]

    @property
    def traced(self) -> tuple[str, ...]:
        """The user's own decoding, which graphs run."""
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
                raise Mismatch(f'head.outputs has no {name!r} of {count} columns, which coder.type reads')
        if self.head.factor and not self.head.factor_from and not isinstance(self.coder, Bucket):
            raise Mismatch('head.factor_from is empty, expected an output and its column for head.factor')
        classes = columns[self.head.scores] - self.head.first_class - (self.head.activation == 'softmax')
        if classes != self.num_classes:
            raise Mismatch(f'head.outputs has scores of {classes} classes, num_classes is {self.num_classes}')


def factor_head(num_classes: int, factor: str) -> Head:
    """Return the head of ATSS, FCOS and similar: sigmoid scores, four box columns and one for the factor.

    The four columns of `bbox_pred` are what the coder takes: deltas of ATSS, distances of FCOS.
    """
    outputs = (('cls_score', num_classes), ('bbox_pred', 4), (factor, 1))
    return Head(outputs, factor=factor, factor_from=(factor, 0))
