"""The bars of float32, half precision and INT8."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.spec.results import Case, DetectionRow, TensorRow
    from mmdeploy_ext.spec.tensors import ColumnGroup

COSINE = 0.999
"""Smallest cosine of every output; `norm_bar` follows from it."""
METRIC = 1e-3
"""Largest difference of a data-set metric in 0..1."""
MASKS = 'matched masks'
"""Name of the row with the cosine of an image's matched masks."""
RTOL, ATOL = 3e-2, 3e-2
"""Tolerances of tables, relative and absolute; `out_of_bars` decides."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """What counts as equal in a precision.

    Attributes:
        cosine: smallest cosine of every output, see `norm_bar`; None in float32: tolerances and ties decide.
        iou: smallest IoU of a pair; None in float32, as `distance_m`: tasks have their own.
        distance_m: largest distance of centres and corners of a pair in 3D (m/s of velocities). A
            PointPillars in INT8 matched 11 of 81 boxes by sizes and headings, and 259 of 290 by corners.
        score: largest score difference of a pair.
        match_rate: smallest matched share of the longer list, over the proof.
        metric: largest difference of a data-set metric in 0..1.
        rtol: tolerance of arrays without a contract, relative to the largest value of a slice.
    """

    cosine: float | None = COSINE
    iou: float | None = 0.9
    distance_m: float | None = 0.5
    score: float = 0.05
    match_rate: float = 0.9
    metric: float = METRIC
    rtol: float = RTOL

    @property
    def is_float32(self) -> bool:
        return self.cosine is None

    def judge(self, rows: Sequence[TensorRow]) -> list[TensorRow]:
        """Judge rows of floats by cosine; float32 rows are already judged by tolerance."""
        if self.is_float32:
            return list(rows)
        judged = []
        for row in rows:
            if row.cosine is not None and row.max_abs is not None and row.tolerance != 0:
                reason = out_of_bars(row, self.cosine)
                row = dataclasses.replace(row, passed=not reason, reason=reason, tolerance=None)
            judged.append(row)
        return judged

    def text(self, place: str) -> str:
        """Return the bars in words; `place`: of results in space."""
        return (
            f'{tensor_text(self.cosine)}, {100 * self.match_rate:g} % of the results matched within {place} '
            f'and score {self.score}'
        )


def norm_bar(cosine: float) -> float:
    """Return the bar of a norm's relative difference, sqrt(2 (1 - c)): 0.0447 in float16, 0.2 in INT8."""
    return math.sqrt(2 * (1 - cosine))


def out_of_bars(row: TensorRow, cosine: float) -> str:
    """Return why a row is outside the bars, or ''."""
    if row.cosine is None or not row.cosine >= cosine:
        return f'cosine {row.cosine or 0:.6f} below {cosine}'
    if row.norm_ratio is not None and not abs(row.norm_ratio - 1) <= norm_bar(cosine):
        limit = f'{100 * norm_bar(cosine):.3g} %'
        return f"norm {row.norm_ratio:.4g} times the reference's, more than {limit} off"
    return ''


def tensor_text(cosine: float) -> str:
    return f'cosine of every output at least {cosine} and its norm within {100 * norm_bar(cosine):.3g} %'


FLOAT32 = Bars(None, None, None, DEFAULT_RTOL, match_rate=1.0, metric=0.0005, rtol=DEFAULT_RTOL)
HALF = Bars()
INT8 = Bars(cosine=0.98, iou=0.5, distance_m=1.0, score=0.15, match_rate=0.9, metric=1e-2)
"""Bars of INT8 files: docs/engines.md promises the metric; the rest catches broken files."""


def bars_of(precision: str) -> Bars:
    """Return the bars of 'fp32', 'fp16', 'bf16' or 'int8'."""
    return dict(fp32=FLOAT32, int8=INT8).get(precision, HALF)


def widened(groups: Sequence[ColumnGroup], precision: str) -> tuple[ColumnGroup, ...]:
    """Return a tensor's tolerances for an 'fp32' or 'fp16' file; `groups` are float32's."""
    if precision == 'fp32':
        return tuple(groups)
    return tuple(dataclasses.replace(group, rtol=RTOL, atol=max(group.atol, ATOL)) for group in groups)


def accept_rate(cases: Sequence[Case], bars: Bars) -> tuple[list[Case], str]:
    """Judge the results of all cases together.

    Returns the cases and '', or unchanged cases and the reason of a common failure. Below float32 single
    results may lack a partner.
    """
    if bars.is_float32:
        return list(cases), ''
    rows = [row for case in cases for row in case.detections if not row.broken]
    counted = sum(max(row.reference, row.matched + row.outside + row.extra) for row in rows)
    matched = sum(row.matched for row in rows)
    if counted and matched / counted < bars.match_rate:
        return list(cases), (
            f'{matched} of {counted} results matched ({100 * matched / counted:.1f} %, required '
            f'{100 * bars.match_rate:g} %)'
        )

    def accepted(row: DetectionRow) -> DetectionRow:
        return row if row.broken else dataclasses.replace(row, passed=True)

    return [dataclasses.replace(case, detections=tuple(map(accepted, case.detections))) for case in cases], ''


def accept_masks(cases: Sequence[Case], bars: Bars) -> list[Case]:
    """Return the cases with matched masks judged by the mean of their cosines over all inputs.

    Masks are binary: one image's cosine counts the pixels at the threshold. The trained toy SOLOv2 has
    0.99898 on a 320x128 image in PyTorch's own float16.
    """
    cosines = [row.cosine or 0.0 for case in cases for row in case.tensors if row.tensor.startswith(MASKS)]
    if not cosines or sum(cosines) / len(cosines) < bars.cosine:
        return list(cases)

    def accepted(row: TensorRow) -> TensorRow:
        return dataclasses.replace(row, passed=True, reason='') if row.tensor.startswith(MASKS) else row

    return [dataclasses.replace(case, tensors=tuple(map(accepted, case.tensors))) for case in cases]
