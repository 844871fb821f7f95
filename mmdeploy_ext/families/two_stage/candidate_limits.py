"""Limits of the boxes that enter NMS, which make all shapes constant."""

import math
from collections.abc import Mapping

from torch import nn

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting.postprocess.suppression import capped, nms_config
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.proposals import (
    HEADS,
    generator_of,
    is_guided,
    is_staged,
    is_users_own,
    thresholds,
)
from mmdeploy_ext.families.two_stage import boxes
from mmdeploy_ext.spec.options import LIMITS, Options
from mmdeploy_ext.upstream.models.crowddet import MultiInstanceBBoxHead


def check(heads: Mapping[str, nn.Module], options: Options) -> None:
    """Raise UsageError for limits that do not make shapes constant, or are out of reach."""
    limits = {name: options[name] for name in LIMITS if options.get(name)}
    if not limits:
        return
    name, limit = next(iter(limits.items()))
    first = f'--{name.replace("_", "-")} {limit}'
    if options.dynamic:
        raise UsageError(f'{first}: requires constant shapes; omit --dynamic-export')
    if 'roi_head' not in heads:
        if 'max_candidates' in limits:
            raise UsageError(f'{first}: proposals are the results of this model; use --max-proposals')
    elif boxes.thresholds(heads['roi_head'].test_cfg).method:
        raise UsageError(f'{first}: soft_nms is a Loop; omit the limits of candidates')
    elif isinstance(heads['roi_head'].bbox_head, MultiInstanceBBoxHead):
        raise UsageError(f"{first}: CrowdDet's suppression is a Loop; omit the limits of candidates")
    elif len(limits) < len(LIMITS):
        raise UsageError(f'{first}: constant shapes need both --max-proposals and --max-candidates')
    for name, available in most(heads, options).items():
        if limits.get(name, 0) > available:
            raise UsageError(
                f'--{name.replace("_", "-")} {limits[name]}: the model has only {available} candidates at '
                f'{options.height} x {options.width}'
            )


def check_proposals(head: nn.Module, options: Options) -> None:
    """Raise UsageError for options that guided anchors or several stages do not take."""
    if is_guided(head):
        detector_parts.check_one_image(head, options)
    if options.get('max_proposals') and (is_guided(head) or is_staged(head)):
        raise UsageError(
            f'--max-proposals {options.max_proposals}: {type(head).__name__} does not support it; omit '
            'the option'
        )


def anchors(rpn_head: nn.Module, options: Options) -> list[int]:
    """Return the anchors of each level."""
    generator = generator_of(rpn_head)
    return [
        math.ceil(options.height / stride[1]) * math.ceil(options.width / stride[0]) * of_cell
        for stride, of_cell in zip(generator.strides, generator.num_base_priors, strict=True)
    ]


def most(heads: Mapping[str, nn.Module], options: Options) -> dict[str, int]:
    """Return option -> most candidates of an image."""
    rpn_head, roi_head = heads['rpn_head'], heads.get('roi_head')
    nms_pre = thresholds(rpn_head).nms_pre
    count = sum(capped(rows, nms_pre) for rows in anchors(rpn_head, options))
    if roi_head is None:
        return dict(max_proposals=count)
    proposals = rows_of(options.max_proposals or count, rpn_head)
    return dict(max_proposals=count, max_candidates=proposals * int(boxes.last_head(roi_head).num_classes))


def rows_of(limit: int, head: nn.Module) -> int:
    proposes = isinstance(head, HEADS) or is_users_own(head)
    config = thresholds(head) if proposes else nms_config(head.test_cfg)
    return capped(limit, config.max_per_img)
