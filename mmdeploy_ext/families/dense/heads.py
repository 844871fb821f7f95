"""What the graphs read of a dense head of mmdet 2.28.2: its kind, outputs, priors, coder and thresholds.

A detector exports because its head is of one of the kinds in `families/parts/dense_heads.py`. If a class of
the user overrides one of `METHODS`, a proof decides on inputs.
"""

import dataclasses
import json
from typing import Any

from torch import nn

from mmdeploy_ext.compat.older_priors import LevelPoints
from mmdeploy_ext.compat.patches_vendored import mmdet_module, mmdet_release
from mmdeploy_ext.contract.dense_head import Head
from mmdeploy_ext.contract.nms import NmsConfig
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.source_code import is_in_library, nearest_base, users_method
from mmdeploy_ext.exporting.postprocess.suppression import nms_config, positive
from mmdeploy_ext.families.parts.dense_heads import KINDS, HeadKind, compares_products
from mmdeploy_ext.families.parts.detector_parts import check_settings

MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator
detectors, dense_heads = mmdet_module('mmdet.models.detectors'), mmdet_module('mmdet.models.dense_heads')
Integral = mmdet_module('mmdet.models.dense_heads.gfl_head').Integral

QUERY_HEAD = mmdet_module('mmdet.models.dense_heads').DETRHead
"""Base class of mmdet's heads of queries, which are derived from dense heads but have no priors."""
METHODS = (
    'simple_test',
    'simple_test_bboxes',
    'get_bboxes',
    '_get_bboxes_single',
    '_bbox_post_process',
    '_bboxes_nms',
    '_bbox_decode',
    'anchor_center',
    'decode_heatmap',
    'score_voting',
)
"""Methods of heads that the graphs compute by themselves."""
PAIRS_SINCE = (2, 18)
"""First release of mmdet whose heads keep the `nms_pre` best pairs of prior and class of a level; before it
they kept the best priors with all their classes (compared: 2.6.0, 2.10.0, 2.14.0, 2.17.0 and 2.18.0)."""
INVERTING_CODERS = ('tblr', 'distance', 'scaled', 'bucket')
"""Coders whose boxes may end before they begin, but for 'centre', whose boxes nothing suppresses; those of
the others have sizes that are no less than zero."""


def kind_of(head: nn.Module) -> HeadKind:
    """Return the kind of a head; ConfigError: its class is derived from none that is exported."""
    name = nearest_base(type(head), KINDS)
    if name is None:
        raise ConfigError(f'{type(head).__name__}: no kind of dense head that is exported')
    return KINDS[name]


def check_library_head(head: nn.Module) -> None:
    """Refuse (ConfigError) a head of mmdet that is derived from a kind and makes its results in another way.

    One of the user's own code that is derived from a kind is not refused, also in a copy of mmdet: a proof
    decides on inputs.
    """
    upstream = kind_of(head).upstream
    if type(head).__name__ in KINDS or not is_in_library(type(head)):
        return
    for name in METHODS:
        if getattr(type(head), name, None) is not getattr(upstream, name, None):
            raise ConfigError(
                f'{type(head).__name__} has a {name}() of its own; expected that of {upstream.__name__}'
            )


def generator_of(head: nn.Module) -> Any:
    """Return the generator of a head's anchors or points; a head without one (CenterNet) gets a new one."""
    return kind_of(head).generator(head)


def base_priors(head: nn.Module) -> list[list[list[float]]]:
    """Return the priors of the first cell of each level: anchors xyxy or points x, y; pixels."""
    generator = generator_of(head)
    if isinstance(generator, LevelPoints):
        return [points.tolist() for points in generator.base_points]
    if isinstance(generator, MlvlPointGenerator):
        return [[[side * generator.offset for side in stride]] for stride in generator.strides]
    return [base.tolist() for base in generator.base_anchors]


def described(head: nn.Module) -> Head:
    """Return the description of a head: its outputs, and how they become candidates.

    ConfigError: it is of no kind, or has a coder or another setting that is not exported.
    """
    kind = kind_of(head)
    inverted = kind.coder(head)['type'] in INVERTING_CODERS
    description = dataclasses.replace(kind.describe(head), inverted=inverted)
    if description.factor and compares_products():
        description = dataclasses.replace(description, judged='product')
    if description.choose == 'pairs' and mmdet_release() < PAIRS_SINCE:
        return dataclasses.replace(description, choose=kind.choose_before_pairs)
    return description


def json_of(description: Head) -> dict[str, Any]:
    """Return field -> value of a description, with lists in place of tuples, as files have it."""
    return json.loads(json.dumps(description.to_json()))


def facts_of(head: nn.Module) -> dict[str, Any]:
    """Return what the metadata tell about the decoding of a head.

    It is all of `POSTPROCESS` in `options.py` but the thresholds. The keys are `clip_border`, `strides` (of
    x, pixels) and `base_anchors` per level, `coder` (settings, by `contract.dense_head`), `num_classes` and
    `head` (fields of its `Head`).

    ConfigError: as of `described`.
    """
    kind = kind_of(head)
    coder = kind.coder(head)  # refuses coders that are not exported, before their other settings are read
    return dict(
        clip_border=bool(kind.clips(head)),
        strides=[int(stride[0]) for stride in generator_of(head).strides],
        base_anchors=base_priors(head),
        coder=coder,
        num_classes=int(head.num_classes),
        head=json_of(described(head)),
    )


def thresholds(head: nn.Module) -> NmsConfig:
    """Return the thresholds of a head; those that its `get_bboxes` does not read have no effect.

    ConfigError: `test_cfg` lacks an entry that upstream reads (if the head has a `get_bboxes` of the user's,
    the message names its file and line, too), or has one that the graph does not reproduce.
    """
    kind = kind_of(head)
    test_cfg = head.test_cfg
    get_bboxes, upstream = type(head).get_bboxes, kind.upstream
    is_upstream = get_bboxes is upstream.get_bboxes
    reader = type(head).__name__ if is_upstream else f'{upstream.__name__}.get_bboxes'
    try:
        check_settings(test_cfg, 'model.test_cfg', kind.needed, reader)
    except ConfigError as error:
        if is_upstream:
            raise
        method = users_method(type(head), 'get_bboxes') or get_bboxes.__qualname__
        raise ConfigError(
            f'{error}; the graphs would compute that in place of {method}: one that works otherwise needs a '
            f'family of its own (docs/own-family.md)'
        ) from error
    if kind.limit == 'topk':  # the best cells, without a suppression
        topk = positive('topk', test_cfg['topk'])
        return NmsConfig(score_thr=0.0, nms_pre=topk, iou_threshold=1.0, max_per_img=topk)
    return dataclasses.replace(nms_config(test_cfg), **kind.fixed)
