"""What the `postprocess` entry of a file holds, by family: checked when the file is opened.

A key that a graph does not need may be missing; what reads it says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract import dense_head
from mmdeploy_ext.contract.dense_head import STRIDES
from mmdeploy_ext.contract.metadata_entries import Facts, check_entry
from mmdeploy_ext.contract.metadata_schema import COUNT, FLAG, FRACTION, LIMIT, POSITIVE
from mmdeploy_ext.contract.schema import Mismatch, exactly, items, maybe, number, one_of, record, text

if TYPE_CHECKING:
    from collections.abc import Mapping

RANGE = exactly(6, number())


def _circles(facts: Mapping[str, Any], where: str) -> None:
    """Refuse radii that are not one per task, where they are read, and a range of other than six numbers."""
    if facts.get('nms_type') == 'circle':
        _equal_lengths('num_classes', 'min_radius')(facts, where)
    if (count := len(facts.get('post_center_limit_range', ()))) not in (0, 6):
        raise Mismatch(f'post_center_limit_range has {count} numbers, expected 6 or none')


def _equal_lengths(*keys: str) -> Any:
    """Return a check that lists have one length, where they are there."""

    def check(facts: Mapping[str, Any], where: str) -> None:
        lengths = {key: len(facts[key]) for key in keys if key in facts}
        if len(set(lengths.values())) > 1:
            raise Mismatch(', '.join(f'{key} has {length} entries' for key, length in lengths.items()))

    return check


def _dense(facts: Mapping[str, Any], where: str) -> None:
    """Refuse levels of unequal number, and a head that does not go with its coder and priors."""
    _equal_lengths('strides', 'base_anchors')(facts, where)
    dense_head.together(facts, where)


POSTPROCESS = dict(
    dense=record(
        dict(
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
        ),
        also=_dense,
        closed=False,
    ),
    solo=record(
        dict(
            score_thr=number(),
            mask_thr=FRACTION,
            filter_thr=number(),
            nms_pre=LIMIT,
            max_per_img=LIMIT,
            kernel=one_of('gaussian', 'linear'),
            sigma=POSITIVE,
            head=text(r'\w*SOLO\w*', 'a SOLO head'),
            num_classes=COUNT,
            num_grids=items(number(1, 1024, whole=True), 1, 64),
            strides=STRIDES,
            mask_stride=number(1, 64, whole=True),
            cells=text(),
        ),
        also=_equal_lengths('num_grids', 'strides'),
        closed=False,
    ),
    rtdetr=record(
        dict(
            max_per_img=COUNT,
            num_queries=COUNT,
            num_classes=COUNT,
            orig_target_sizes=text(),
            position_layout=text(),
        ),
        closed=False,
    ),
    streampetr=record(
        dict(
            max_num=COUNT,
            post_center_range=RANGE,
            score_threshold=maybe(number()),
            num_classes=COUNT,
            memory_len=COUNT,
            topk_proposals=COUNT,
            num_propagated=number(0, 100_000, whole=True),
        ),
        closed=False,
    ),
    centerpoint=record(
        dict(
            num_classes=items(COUNT, 1, 64),
            voxel_size=exactly(2, POSITIVE),
            pc_origin=exactly(2, number()),
            out_size_factor=number(1, 1024, whole=True),
            max_num=COUNT,
            score_threshold=maybe(number()),
            post_center_range=RANGE,
            norm_bbox=FLAG,
            with_velocity=FLAG,
            nms_type=one_of('rotate', 'circle'),
            nms_thr=number(0),
            nms_score_threshold=number(),
            pre_max_size=maybe(LIMIT),
            post_max_size=LIMIT,
            min_radius=items(number(0), 0, 64),
            post_center_limit_range=items(number(), 0, 6),
        ),
        also=_circles,
        closed=False,
    ),
)


FORMER = dict(atss=('dense', dense_head.facts_of_atss))
"""Families of files of earlier versions -> what they are called now, and what makes their facts today's."""


def current(family: str, facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the family of a file by its name of today, and the facts as it would write them."""
    name, upgrade = FORMER.get(family, (family, dict))
    return name, upgrade(facts)


def checked_facts(facts: dict[str, Any], family: str, path: object) -> Facts:
    """Return the facts of a file; a family that ships no runtime has any.

    Raises:
        ModelFileError: the message names the key.
    """
    if family in POSTPROCESS:
        check_entry(facts, 'postprocess', path, POSTPROCESS[family])
    return _facts(facts, f'{path}: mm2onnx.postprocess')


def _facts(values: dict[str, Any], where: str) -> Facts:
    """Return a dict and those in it, all of which say where a key is missing."""
    found = {
        key: _facts(value, f'{where}.{key}') if isinstance(value, dict) else value
        for key, value in values.items()
    }
    return Facts(found, where)
