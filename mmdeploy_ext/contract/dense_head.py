"""The description of a dense head, as plain data, from which its graphs are built; the metadata keep it.

Glossary: a level is the feature map of one stride, with the same priors in each of its cells; a prior is an
anchor (x1, y1, x2, y2) or a point (x, y), in pixels. A coder makes a box of a prior and the head's outputs
for it; `runtime/box_coders.py` has all of them. A score factor is a second score of each
prior, such as centerness, that class scores are multiplied with. A candidate is a box with a class, before
boxes that overlap a better one are suppressed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    POSITIVE,
    STRIDES,
    Check,
    Mismatch,
    anything,
    either,
    exactly,
    full_record,
    items,
    number,
    one_of,
    record,
    text,
)
from mmdeploy_ext.core.files import JsonDataclass

PRIOR_CHOICES = ('priors', 'class_priors', 'factor_priors')
"""Values of `Head.choose` by which priors remain with all their classes."""


@dataclasses.dataclass(frozen=True)
class Head(JsonDataclass):
    """How a head's outputs become candidates.

    B is the batch, H the height of the input, h and w are the rows and columns of a level's feature map.

    Attributes:
        outputs: (name, columns per prior) of each kind of output; the graph's are `<name>_<level>`
            (B, priors per cell * columns, h, w), in which the columns of a prior are side by side: channel
            `prior * columns + column`.
        scores: name of the output with class scores.
        first_class: column of this output that has the first class.
        activation: function from logits to scores: 'sigmoid', 'softmax' (the background is the last column)
            or 'none'.
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
        suppresses: whether boxes that overlap a better one of their class, or of any if `postprocess` is
            `class_agnostic`, are left out.
        bordered: whether the padding above and left of the image (input `border`) is subtracted from boxes.
    """

    outputs: tuple[tuple[str, int], ...]
    scores: str = 'cls_score'
    first_class: int = 0
    activation: str = 'sigmoid'
    factor: str = ''
    factor_from: tuple[str | int, ...] = ()
    root: bool = False
    choose: str = 'pairs'
    judged: str = 'class'
    inclusive: bool = False
    conf_thr: float = 0.0
    votes: bool = False
    clip_inset: float = 0.0
    visible: str = ''
    visible_thr: float = 0.0
    inverted: bool = False
    maps_by_stride: bool = True
    peaks: int = 0
    suppresses: bool = True
    bordered: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the outputs, without levels."""
        return tuple(name for name, _ in self.outputs)


def factor_head(num_classes: int, factor: str) -> Head:
    """Return the head of ATSS, FCOS and similar: sigmoid scores, four box columns and one for the factor.

    The four columns of `bbox_pred` are what the coder takes: deltas of ATSS, distances of FCOS. `num_classes`
    does not count the background; `factor` is the name of the factor's output, 'centerness' of most.
    """
    outputs = (('cls_score', num_classes), ('bbox_pred', 4), (factor, 1))
    return Head(outputs, factor=factor, factor_from=(factor, 0))


BOX = exactly(4, number())
PRIORS = items(items(items(number(), 2, 4), 1, 1024), 1, 64)
"""Check of a list of lists of lists: of each level, the priors of one cell, each of 2 to 4 numbers.

`check_consistency` refuses those of 3.
"""
DELTA = dict(means=BOX, stds=exactly(4, POSITIVE), wh_ratio_clip=POSITIVE)
CODERS: dict[str, dict[str, Check]] = dict(
    delta=DELTA,
    guided=dict(DELTA, anchor_coder=record(dict(DELTA, ctr_clamp=number(0), type=one_of('delta')), [*DELTA])),
    tblr=dict(normalizer=either(POSITIVE, exactly(4, POSITIVE))),
    distance={},
    base_length=dict(lengths=items(POSITIVE, 1, 64)),
    integral=dict(bins=COUNT, strides=STRIDES),
    scaled=dict(strides=STRIDES, around_points=FLAG),
    yolo=dict(strides=STRIDES),
    yolox=dict(strides=STRIDES),
    centre=dict(strides=STRIDES),
    bucket=dict(buckets=COUNT, num_buckets=COUNT, scale_factor=POSITIVE),
)
"""Coder of `runtime/box_coders.py` -> checks of the settings that it reads.

`bins` is the number of entries of a side's distribution. An anchor, enlarged by `scale_factor`, is cut into
`num_buckets` along an axis, of which a side may be in the `buckets` of its half.
"""
OPTIONAL = dict(delta=dict(ctr_clamp=number(0), pixel=number(0)), guided=dict(ctr_clamp=number(0)))
"""Coder -> checks of settings that may be missing.

`ctr_clamp` is the largest move of a centre, pixels; without it none is limited. `pixel` is what sizes of
anchors have more than their corners are apart: 1 in mmdet 1.x.
"""
ANCHOR_CODERS = ('delta', 'guided', 'tblr', 'yolo', 'bucket')
POINT_CODERS = ('base_length', 'yolox', 'centre')
"""Coders that take only anchors (priors of 4 numbers), and those that take only points (2 numbers)."""


def coder(value: Any, key: str) -> None:
    """Refuse, with a Mismatch, an unknown coder, and settings that it lacks or does not have.

    It is a check of `schema`. The value is a dict of `type`, a key of `CODERS`, and the settings that this
    coder reads; `key` is its place in the metadata, for the message.
    """
    record(dict(type=one_of(*CODERS)), ('type',), closed=False)(value, key)
    needed, optional = CODERS[value['type']], OPTIONAL.get(value['type'], {})
    record(dict(needed, **optional, type=anything), tuple(needed))(value, key)


def columns_read(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return name of an output -> number of its columns per prior that a coder reads.

    Args:
        settings: `coder` of the metadata's `postprocess`: `type`, a key of `CODERS`, and its settings.
    """
    sides = 4 * settings.get('buckets', 1)
    return dict(
        guided=dict(bbox_pred=4, shape_pred=2),
        integral=dict(bbox_pred=4 * settings.get('bins', 1)),
        yolo=dict(pred_map=4),
        centre=dict(wh=2, offset=2),
        bucket=dict(bbox_cls=sides, bbox_reg=sides),
    ).get(settings['type'], dict(bbox_pred=4))


NAME = text(r'\w*', 'the name of an output')
"""Check of the name of an output, or ''."""


def pair(number_check: Check) -> Check:
    """Return a check of a list [name of an output, number]; `number_check` is that of the number."""

    def check(value: Any, key: str) -> None:
        exactly(2, anything)(value, key)
        NAME(value[0], f'{key}[0]')
        number_check(value[1], f'{key}[1]')

    return check


HEAD = full_record(
    outputs=items(pair(COUNT), 1, 8),
    scores=NAME,
    first_class=number(0, 64, integer=True),
    activation=one_of('sigmoid', 'softmax', 'none'),
    factor=NAME,
    factor_from=either(exactly(0, anything), pair(number(0, 100_000, integer=True))),
    root=FLAG,
    choose=one_of('pairs', *PRIOR_CHOICES, 'best', 'all'),
    judged=one_of('class', 'product'),
    inclusive=FLAG,
    conf_thr=number(),
    votes=FLAG,
    clip_inset=number(0),
    visible=NAME,
    visible_thr=number(),
    inverted=FLAG,
    maps_by_stride=FLAG,
    peaks=number(0, 99, integer=True),
    suppresses=FLAG,
    bordered=FLAG,
)
"""Check of the JSON form of a `Head`."""


def check_consistency(facts: Mapping[str, Any], key: str) -> None:
    """Refuse, with a Mismatch, a head, a coder, classes and priors that contradict each other.

    It is a check of `schema`. Missing entries pass: the code that reads them refuses them.

    Args:
        facts: `postprocess` of the metadata, of which `head`, `coder`, `num_classes`, `strides` and
            `base_anchors` are looked at; each has passed its own check.
        key: place of `facts` in the metadata; no message needs it.
    """
    head, settings = facts.get('head'), facts.get('coder')
    if head:
        _check_outputs(head, facts.get('num_classes'))
    if settings:
        _check_levels(facts, settings)
    if head and settings:
        columns = dict(head['outputs'])
        for name, count in columns_read(settings).items():
            if columns.get(name, 0) < count:
                raise Mismatch(f'head.outputs has no {name!r} of {count} columns, which coder.type reads')
        if head['factor'] and not head['factor_from'] and settings['type'] != 'bucket':
            raise Mismatch('head.factor_from is empty, expected an output and its column for head.factor')


def _check_outputs(head: Mapping[str, Any], num_classes: int | None) -> None:
    """Refuse names of missing outputs, columns that they lack, and scores of another number of classes."""
    columns = dict(head['outputs'])
    if len(columns) < len(head['outputs']):
        raise Mismatch('head.outputs has a name twice')
    for key in ('scores', 'visible'):
        if head[key] not in columns and (head[key] or key == 'scores'):
            raise Mismatch(f'head.{key} is {head[key]!r}, expected one of {", ".join(columns)}')
    if head['visible'] and columns[head['visible']] != 1:
        raise Mismatch(f'head.visible is {head["visible"]!r}, expected an output of one column')
    if head['conf_thr'] > 0 and not head['factor']:
        raise Mismatch(
            f'head.conf_thr is {head["conf_thr"]}, expected head.factor, which it is compared with'
        )
    if head['factor_from'] and head['factor_from'][1] >= columns.get(head['factor_from'][0], 0):
        raise Mismatch(f'head.factor_from is {head["factor_from"]}, which head.outputs does not have')
    score_classes = columns[head['scores']] - head['first_class']
    if head['activation'] == 'softmax':  # the background is a column, too
        score_classes -= 1
    if num_classes not in (None, score_classes):
        raise Mismatch(f'head.outputs has scores of {score_classes} classes, num_classes is {num_classes}')


def _check_levels(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse settings that are not one per level, and priors that the coder does not take."""
    for key in ('strides', 'lengths'):
        if key in settings and len(settings[key]) != len(facts.get('strides', settings[key])):
            raise Mismatch(f'coder.{key} has {len(settings[key])} entries, expected one per level (strides)')
    sizes = {len(prior) for level in facts.get('base_anchors', ()) for prior in level}
    if settings['type'] in ANCHOR_CODERS:
        expected_sizes = {4}
    elif settings['type'] in POINT_CODERS or settings.get('around_points'):
        expected_sizes = {2}
    else:
        expected_sizes = {2, 4}
    if len(sizes) > 1 or sizes - expected_sizes:
        raise Mismatch(
            f'base_anchors has entries of {", ".join(map(str, sorted(sizes)))} numbers, expected '
            f'{" or ".join(map(str, sorted(expected_sizes)))} for coder.type {settings["type"]!r}'
        )
