"""Dense heads: their options, and what their files tell `runtime/dense`."""

import json
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract import dense_head
from mmdeploy_ext.contract.options import MAX_CANDIDATES
from mmdeploy_ext.contract.schema import number, open_record
from mmdeploy_ext.contract.values import COUNT, FLAG, FRACTION, LIMIT, STRIDES, equal_lengths

OPTIONS = (MAX_CANDIDATES,)


def _dense(facts: Mapping[str, Any], where: str) -> None:
    """Refuse levels of unequal number, and a head that does not go with its coder and priors."""
    equal_lengths('strides', 'base_anchors')(facts, where)
    dense_head.together(facts, where)


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
    also=_dense,
)


def _facts_of_atss(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a file that knew no head but ATSS's, in full.

    What is of another type than such files have is left as it is, for the checks to name.
    """
    found, classes, settings = dict(facts), facts.get('num_classes'), facts.get('coder')
    if isinstance(settings, dict):
        found['coder'] = {'type': 'delta', **settings}
    if type(classes) is int:
        found['head'] = json.loads(json.dumps(dense_head.factor_head(classes, 'centerness').to_json()))
    return found


def _facts_in_full(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a file with what files of earlier versions lack."""
    found = dict(facts)
    if isinstance(head := facts.get('head'), dict):
        found['head'] = head | {name: value for name, value in dense_head.NEWER.items() if name not in head}
    return found


FORMER = dict(atss=_facts_of_atss, dense=_facts_in_full)
