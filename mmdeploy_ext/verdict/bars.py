"""The bars of half precision and INT8, and the judgement by them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.verdict.comparison import compare_named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.spec import ColumnGroup
    from mmdeploy_ext.verdict.comparison import TensorRow

COSINE = 0.999
"""Smallest cosine of every output; `norm_bar` follows from it."""
METRIC = 1e-3
"""Largest difference of a data-set metric in 0..1."""
MASKS = 'matched masks'
"""Name of the row with the cosine of an image's matched masks."""
RTOL, ATOL = 3e-2, 3e-2
"""Tolerances of tables, relative and absolute; `out_of_bars` decides."""


@dataclasses.dataclass(frozen=True)
class HalfBars:
    """Bars for results in less than float32.

    Attributes:
        cosine: smallest cosine of every output; see `norm_bar`.
        iou: smallest IoU of a matched pair.
        distance_m: largest distance of centres and corners of a pair in 3D (m/s of velocities). A
            PointPillars in INT8 matched 11 of 81 boxes by sizes and headings, and 259 of 290 by corners.
        score: largest score difference of a pair.
        match_rate: smallest matched share of the longer list, over the proof.
        metric: largest difference of a data-set metric in 0..1.
    """

    cosine: float = COSINE
    iou: float = 0.9
    distance_m: float = 0.5
    score: float = 0.05
    match_rate: float = 0.9
    metric: float = METRIC

    def judge(self, rows: Sequence[TensorRow]) -> list[TensorRow]:
        judged = []
        for row in rows:
            if row.cosine is not None and row.max_abs is not None and row.tolerance != 0:
                reason = out_of_bars(row, self.cosine)
                row = dataclasses.replace(row, passed=not reason, reason=reason, tolerance=None)
            judged.append(row)
        return judged

    def matched_rows(self, reference: Any, candidate: Any, pairs: Mapping[int, int]) -> list[TensorRow]:
        """Return rows with the cosines of an image's matched boxes, masks and scores."""
        if not pairs:
            return []
        sides = [
            {
                f'matched {name}': np.asarray(getattr(results, name), np.float32)[list(order)]
                for name in ('bboxes_xyxy', 'masks', 'scores')
                if getattr(results, name, None) is not None
            }
            for results, order in ((reference, pairs.keys()), (candidate, pairs.values()))
        ]
        rows = compare_named(*sides, RTOL, 'matched results')
        return self.judge([dataclasses.replace(row, norm_ratio=None) for row in rows])

    def text(self, place: str) -> str:
        """Return the bars in words; `place`: those of results in space."""
        return (
            f'{tensor_text(self.cosine)}, {100 * self.match_rate:g} % of the results matched within {place} '
            f'and score {self.score}'
        )


def norm_bar(cosine: float) -> float:
    """Return the largest relative difference of a norm, sqrt(2 (1 - c)): 0.0447 in float16, 0.2 in INT8."""
    return math.sqrt(2 * (1 - cosine))


def out_of_bars(row: TensorRow, cosine: float) -> str:
    """Return why a row is outside of the bars, or ''."""
    if row.cosine is None or not row.cosine >= cosine:
        return f'cosine {row.cosine or 0:.6f} below {cosine}'
    if row.norm_ratio is not None and not abs(row.norm_ratio - 1) <= norm_bar(cosine):
        limit = f'{100 * norm_bar(cosine):.3g} %'
        return f"norm {row.norm_ratio:.4g} times the reference's, more than {limit} off"
    return ''


def tensor_text(cosine: float) -> str:
    return f'cosine of every output at least {cosine} and its norm within {100 * norm_bar(cosine):.3g} %'


BARS = HalfBars()
INT8_BARS = HalfBars(cosine=0.98, iou=0.5, distance_m=1.0, score=0.15, match_rate=0.9, metric=1e-2)
"""Bars of INT8 files: their metric is promised (docs/engines.md), the rest catches broken files."""


def bars_of(precision: str) -> HalfBars | None:
    """Return the bars of 'fp16', 'bf16' or 'int8'; None for 'fp32', which has tolerances."""
    if precision == 'fp32':
        return None
    return INT8_BARS if precision == 'int8' else BARS


def widened(groups: Sequence[ColumnGroup], precision: str) -> tuple[ColumnGroup, ...]:
    """Return a tensor's tolerances in the contract of an 'fp32' or 'fp16' file; `groups` are float32's."""
    if precision == 'fp32':
        return tuple(groups)
    return tuple(dataclasses.replace(group, rtol=RTOL, atol=max(group.atol, ATOL)) for group in groups)
