"""The kinds of dense heads: what each class of mmdet 2.28.2 gives, and by which of its methods.

A detector exports because its head is of a kind; where a head overrides one of `METHODS`, inputs decide. What
is only of one kind stands in its entry (`plain_heads.py`, `own_heads.py`): what it outputs, its coder, and
boxes by mmdet's own functions, for the proof.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.dense_head import Head
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import NmsConfig, nms_config, positive
from mmdeploy_ext.families.parts import followed
from mmdeploy_ext.families.parts.own_heads import OWN
from mmdeploy_ext.families.parts.plain_heads import PLAIN, Kind
from mmdeploy_ext.families.replaced import Replaced

MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator

QUERIES = mmdet_module('mmdet.models.dense_heads').DETRHead
"""Heads of queries: dense ones by inheritance alone; they have no priors."""
KINDS: dict[str, Kind] = PLAIN | OWN
"""Class of mmdet -> its kind; a subclass is of the same kind."""
METHODS = (
    *('simple_test', 'simple_test_bboxes', 'get_bboxes', '_get_bboxes_single', '_bbox_post_process'),
    *('_bboxes_nms', '_bbox_decode', 'decode_heatmap'),
)
"""Methods of heads that the graphs compute by themselves."""
FOLLOWED = (
    *followed.SINGLE_STAGE,
    *((kind.upstream, METHODS) for kind in KINDS.values()),
    *followed.CODERS,
    *followed.FUNCTIONS,
)
"""See `Family.followed`."""


def kind_of(head: nn.Module) -> Kind:
    """Return the kind of a head; ConfigError: it is of none."""
    known = [KINDS[name] for name in (one.__name__ for one in type(head).__mro__) if name in KINDS]
    if not known:
        raise ConfigError(f'{type(head).__name__}: no kind of dense head that is exported')
    return known[0]


def check_library_head(head: nn.Module) -> None:
    """Refuse (ConfigError) a head of mmdet that is derived from a kind and makes its results in another way.

    A head of the user's own code is not refused: inputs decide.
    """
    upstream = kind_of(head).upstream
    if type(head).__name__ in KINDS or not type(head).__module__.startswith('mmdet.'):
        return
    for name in METHODS:
        if getattr(type(head), name, None) is not getattr(upstream, name, None):
            raise ConfigError(
                f'{type(head).__name__} has a {name}() of its own; expected that of {upstream.__name__}'
            )


def replaced_methods(model: nn.Module) -> Iterator[Replaced]:
    """Yield what the graphs of a detector compute by themselves, see `Family.replaced`."""
    yield from followed.replaced_of_class(model, followed.SINGLE_STAGE)
    yield from followed.replaced_in([model.bbox_head], FOLLOWED)


def generator_of(head: nn.Module) -> Any:
    """Return what makes the priors of a head."""
    generator = kind_of(head).generator
    return generator(head) if callable(generator) else getattr(head, generator)


def base_priors(head: nn.Module) -> list[list[list[float]]]:
    """Return the priors of the first cell of each level: anchors xyxy or points x, y; pixels."""
    generator = generator_of(head)
    if isinstance(generator, MlvlPointGenerator):
        return [[[side * generator.offset for side in stride]] for stride in generator.strides]
    return [base.tolist() for base in generator.base_anchors]


INVERTED = ('tblr', 'distance', 'scaled', 'bucket')
"""Coders whose boxes may end before they begin; those of the others have sizes that are no less than zero."""


def described(head: nn.Module) -> Head:
    """Return what a head outputs, and how that becomes candidates."""
    kind = kind_of(head)
    return dataclasses.replace(kind.head(head), inverted=kind.coder(head)['type'] in INVERTED)


def facts_of(head: nn.Module) -> dict[str, Any]:
    """Return what is known of a head, besides thresholds: see `families/dense/runtime`."""
    kind = kind_of(head)
    coder = kind.coder(head)  # refuses those that are not known, which may have no borders
    return dict(
        clip_border=bool(kind.clips(head)),
        strides=[int(stride[0]) for stride in generator_of(head).strides],
        base_anchors=base_priors(head),
        coder=coder,
        num_classes=int(head.num_classes),
        head=plain(described(head).to_json()),
    )


def plain(value: Any) -> Any:
    """Return tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def thresholds(head: nn.Module) -> NmsConfig:
    """Return the thresholds of a head; what its `get_bboxes` does not look at limits nothing.

    ConfigError: `test_cfg` lacks an entry that upstream reads, or has one that no graph repeats.
    """
    kind = kind_of(head)
    given = head.test_cfg or {}
    needed = [key for key in kind.needed if key not in kind.fixed]
    if missing := [key for key in needed if given.get(key) is None]:
        raise ConfigError(
            f'model.test_cfg has no {", ".join(missing)}, which {type(head).__name__} reads; expected '
            f'{", ".join(needed)}'
        )
    if kind.limit == 'topk':  # the best cells, without a suppression
        most = positive('topk', given['topk'])
        return NmsConfig(score_thr=0.0, nms_pre=most, iou_threshold=1.0, max_per_img=most)
    return dataclasses.replace(nms_config(head.test_cfg), **kind.fixed)
