"""The proof of files in float16, bfloat16 and INT8: the engine that runs them, and all results together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.engines import BACKENDS
from mmdeploy_ext.tasks import place_text
from mmdeploy_ext.verdict.bars import BARS, MASKS, HalfBars, bars_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.verdict.comparison import TensorRow
    from mmdeploy_ext.verdict.results import Case, DetectionRow
    from mmdeploy_ext.verdict.verdict import Results, Verdict

CPU = 'CPUExecutionProvider'

ROUNDED = (
    "ONNX Runtime's CPU computes float16 in float32: here every value that the file stores in float16 was "
    'rounded, as a GPU does'
)


def proof_engine(kind: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's options for a float16 file: ONNX Runtime on the CPU gets `round_fp16`.

    `kind` is a key of `BACKENDS`.
    """
    providers = engine.get('providers') or CPU
    on_cpu = providers == CPU or tuple(providers) == (CPU,)
    computes_in_float32 = 'round_fp16' in BACKENDS[kind].keys and on_cpu
    return {'round_fp16': True, **engine} if computes_in_float32 else dict(engine)


def accept_rate(cases: Sequence[Case], bars: HalfBars) -> tuple[list[Case], str]:
    """Judge the results of all cases together.

    Returns the cases, with single results without a partner forgiven, and ''; or the unchanged cases and the
    reason of a common failure.
    """
    rows = [row for case in cases for row in case.detections if not row.broken]
    counted = sum(max(row.reference, row.matched + row.outside + row.extra) for row in rows)
    matched = sum(row.matched for row in rows)
    if counted and matched / counted < bars.match_rate:
        return list(cases), (
            f'{matched} of {counted} results matched ({100 * matched / counted:.1f} %, wanted '
            f'{100 * bars.match_rate:g} %)'
        )

    def accepted(row: DetectionRow) -> DetectionRow:
        return row if row.broken else dataclasses.replace(row, passed=True)

    return [dataclasses.replace(case, detections=tuple(map(accepted, case.detections))) for case in cases], ''


def accept_masks(cases: Sequence[Case], bars: HalfBars) -> list[Case]:
    """Return the cases with matched masks judged by the mean of their cosines over all inputs.

    A mask is yes or no: one picture's cosine counts the pixels at the threshold. The trained toy SOLOv2 has
    0.99898 on a picture of 320x128 in PyTorch's own float16.
    """
    cosines = [row.cosine or 0.0 for case in cases for row in case.tensors if row.tensor.startswith(MASKS)]
    if not cosines or sum(cosines) / len(cosines) < bars.cosine:
        return list(cases)

    def accepted(row: TensorRow) -> TensorRow:
        return dataclasses.replace(row, passed=True, reason='') if row.tensor.startswith(MASKS) else row

    return [dataclasses.replace(case, tensors=tuple(map(accepted, case.tensors))) for case in cases]


def judge_match_rate(results: Results, verdict: Verdict, rounded: bool) -> None:
    """Judge the results of all inputs together; change cases, add reasons and notes.

    `rounded`: `proof_engine` rounded float16, which is noted.
    """
    bars = bars_of(verdict.precision) or BARS
    results.cases, reason = accept_rate(accept_masks(results.cases, bars), bars)
    if reason:
        results.reasons.append(reason)
    verdict.notes.append(
        f'{verdict.precision}: judged by bars of its own, which are not those of float32: '
        f'{bars.text(place_text(str(verdict.subject.get("task")), bars))}'
    )
    if rounded:
        verdict.notes.append(ROUNDED)
