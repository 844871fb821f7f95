"""What a dense head is, as plain data: what its graphs are built from, and what the metadata keep."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata_schema import COUNT, FLAG, POSITIVE
from mmdeploy_ext.contract.schema import anything, exactly, items, number, one_of, record, text
from mmdeploy_ext.core.plain import Plain

if TYPE_CHECKING:
    from collections.abc import Mapping

STRIDES = items(number(1, 4096, whole=True), 1, 64)


@dataclasses.dataclass(frozen=True)
class Head(Plain):
    """How a head's outputs become candidates.

    Attributes:
        outputs: (name, columns per prior) of each kind of output; the graph's are `<name>_<level>`
            (B, priors per cell * columns, h, w).
        scores: the output with class scores.
        first_class: column of its first class.
        activation: 'sigmoid', 'softmax' (the background is the last column) or 'none'.
        factor: name of the score factor in the `decode` form; '' without one.
        factor_from: output and column of the factor's logits; empty where the coder gives it.
        root: results are ordered by the root of score * factor instead of the product.
        choose: 'pairs': the `nms_pre` best (prior, class) pairs of a level; 'priors': the `nms_pre` best
            priors; 'best': each prior's best class; 'all': all pairs.
        judged: what the threshold looks at: 'class' scores, or their 'product' with the factor.
        inclusive: what equals the threshold passes.
        conf_thr: factors below this are left out.
        votes: boxes are replaced by the mean of the candidates that overlap them.
        clip_inset: boxes are clipped to this many pixels inside the right and bottom border.
        visible: output with logits (B, 1, h, w) of where there are priors at all; '' everywhere. Such heads
            (guided anchors) take one image at a time.
        visible_thr: that they have to reach, after the sigmoid.
        maps_by_stride: feature maps have ceil(H / stride) rows, and columns likewise.
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
    maps_by_stride: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the outputs, without levels."""
        return tuple(name for name, _ in self.outputs)


def factor_head(num_classes: int, factor: str) -> Head:
    """Return the head of ATSS, FCOS and their like: sigmoid scores, deltas, a factor of its own."""
    outputs = (('cls_score', num_classes), ('bbox_pred', 4), (factor, 1))
    return Head(outputs, factor=factor, factor_from=(factor, 0))


PRIORS = items(items(items(number(), 2, 4), 1, 1024), 1, 64)
DELTA = record(
    dict(means=exactly(4, number()), stds=exactly(4, POSITIVE), wh_ratio_clip=POSITIVE),
    ('means', 'stds', 'wh_ratio_clip'),
)
CODER = record(
    dict(
        type=text(r'\w+', 'the name of a coder'),
        means=exactly(4, number()),
        stds=exactly(4, POSITIVE),
        wh_ratio_clip=POSITIVE,
        ctr_clamp=number(0),
        bins=COUNT,
        strides=STRIDES,
        lengths=items(POSITIVE, 1, 64),
        around_points=FLAG,
        buckets=COUNT,
        num_buckets=COUNT,
        scale_factor=POSITIVE,
        anchor_coder=DELTA,
    ),
    ('type',),
    closed=False,
)
NAME = text(r'\w*', 'the name of an output')
HEAD = record(
    dict(
        outputs=items(exactly(2, anything), 1, 8),
        scores=NAME,
        first_class=number(0, 64, whole=True),
        activation=one_of('sigmoid', 'softmax', 'none'),
        factor=NAME,
        factor_from=items(anything, 0, 2),
        root=FLAG,
        choose=one_of('pairs', 'priors', 'best', 'all'),
        judged=one_of('class', 'product'),
        inclusive=FLAG,
        conf_thr=number(),
        votes=FLAG,
        clip_inset=number(0),
        visible=NAME,
        visible_thr=number(),
        maps_by_stride=FLAG,
    ),
    tuple(field.name for field in dataclasses.fields(Head)),
)


def facts_of_atss(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a file that knew no head but ATSS's, in full."""
    head = factor_head(int(facts.get('num_classes', 1)), 'centerness').to_json()
    head['outputs'] = [list(one) for one in head['outputs']]
    return dict(facts, coder=dict(facts.get('coder', {}), type='delta'), head=head)
