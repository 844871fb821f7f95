"""Results of traced test paths in numpy.

Glossary: B batch, n results of an image, m side of a mask in the frame of its box, h, w size of the original.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import FrozenWarning, UsageError
from mmdeploy_ext.families.common.runtime import padded_instances, padded_results, pasted_masks
from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Limit, MaskThreshold, optional
from mmdeploy_ext.spec.tensors import VALID

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays, Detections, Instances
    from mmdeploy_ext.spec.metadata import Metadata


# Facts of a traced test path.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedFacts(Facts):
    """Facts of a traced test path.

    Attributes:
        num_classes: classes of the results, or None.
        max_per_img: of `test_cfg`; -1: none.
        mask_thr: inclusive threshold of masks in the frame of their boxes, or None.
        test_cfg: numbers of the model's `test_cfg`, nested.
        escapes: lines of code whose result for the example is in the graph; `valid` tells where it is
            another one.
        ends_in: method whose arguments are the outputs, and the line that leaves the tensors; or ''.
        difference: first node in which traces of two pictures differ; '' if they are equal.
    """

    num_classes: Count | None = optional()
    max_per_img: Limit = -1
    mask_thr: MaskThreshold | None = optional()
    test_cfg: Mapping[str, Any]
    escapes: tuple[str, ...] = ()
    difference: str = ''
    ends_in: str = ''


@dataclasses.dataclass(frozen=True)
class CornerFacts(Facts):
    """Facts in files of 0.3.0 of CornerNet and CentripetalNet."""

    corner_topk: Count
    max_per_img: Count
    local_maximum_kernel: Count
    distance_threshold: float
    num_classes: Count


@dataclasses.dataclass(frozen=True)
class YolactFacts(Facts):
    """Facts in files of 0.3.0 of YOLACT."""

    score_thr: float
    iou_thr: Fraction
    mask_thr: Fraction
    nms_pre: Limit
    top_k: Count
    max_per_img: Count
    num_classes: Count


@dataclasses.dataclass(frozen=True)
class InstanceFacts(Facts):
    """Facts in files of 0.3.0 of RTMDet-Ins, CondInst and BoxInst."""

    score_thr: float
    iou_thr: Fraction
    mask_thr: Fraction
    min_size: float
    nms_pre: Limit
    max_per_img: Count
    num_classes: Count


RUNNERS = {'full': 'with_postprocess'}


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections] | list[Instances]:
    """Return the results of each image of a batch; warn where the file's code would have run other lines.

    Args:
        metadata: metadata of the file.
        outputs: `dets` (B, n, 5) x1 y1 x2 y2 score or `scores` (B, n), best first; `labels` (B, n) int64;
            maybe `masks` (B, n, m, m) float32 in the frame of the box, or (B, n, h, w) bool; and
            `valid` (B,).
        feeds: `ori_shape` and `scale_factor` for masks in the frame of boxes.
    """
    if ends_in := getattr(metadata.postprocess, 'ends_in', ''):
        raise UsageError(
            f'{ends_in}: this file ends where your code leaves the tensors; call the method with its outputs '
            f'{", ".join(metadata.spec.output_names)}'
        )
    if metadata.form not in ('full', 'post'):
        raise UsageError(
            f'--postprocess {metadata.form}: this file has no results; your program makes them of '
            f'{", ".join(metadata.spec.output_names)}, or export --postprocess post for the rest'
        )
    if np.any(outputs.get(VALID, True) != 1):
        warnings.warn(FrozenWarning(invalid(metadata)), stacklevel=2)
    if 'masks' not in outputs or 'dets' not in outputs:
        return padded_results.detections(metadata, outputs, feeds)
    has_one_size = outputs['masks'].dtype == bool and not metadata.options.get('paste_masks')
    kind = padded_instances if has_one_size else pasted_masks
    return kind.detections(metadata, outputs, feeds)


def invalid(metadata: Metadata) -> str:
    """Return what it means that `valid` is false."""
    lines = metadata.postprocess.escapes
    listed = f': {"; ".join(lines[:3])}' if lines else ''
    return (
        "output 'valid' is false: for this image your code takes another branch than for the traced one, so "
        f'that the results are wrong{listed}'
    )
