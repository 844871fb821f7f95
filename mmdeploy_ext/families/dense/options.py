"""Options of dense heads, and the check of the `postprocess` entry of their files."""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract import dense_head
from mmdeploy_ext.contract.options import MAX_CANDIDATES
from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    FRACTION,
    LIMIT,
    STRIDES,
    equal_lengths,
    number,
    open_record,
)

OPTIONS = (MAX_CANDIDATES,)
"""Options of the family."""


def _check_levels(facts: Mapping[str, Any], path: str) -> None:
    """Refuse levels of unequal number, and a head that does not go with its coder and priors."""
    equal_lengths('strides', 'base_anchors')(facts, path)
    dense_head.check_consistency(facts, path)


POSTPROCESS = open_record(
    score_thr=number(),
    nms_pre=LIMIT,
    iou_threshold=FRACTION,
    max_per_img=LIMIT,
    class_agnostic=FLAG,
    clip_border=FLAG,
    strides=STRIDES,
    base_anchors=dense_head.PRIORS,
    coder=dense_head.coder,
    head=dense_head.HEAD,
    num_classes=COUNT,
    also=_check_levels,
)
"""The entry `postprocess` of the metadata."""
