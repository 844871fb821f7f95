"""The proof of float16, bfloat16 and INT8 files: the engine and all results together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.engines import BACKENDS
from mmdeploy_ext.runtime.tasks import place_text
from mmdeploy_ext.spec.results import accept_masks, accept_rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.spec.verdict import Results, Verdict

CPU = 'CPUExecutionProvider'

ROUNDED = (
    "ONNX Runtime's CPU computes float16 in float32: here every value that the file stores in float16 is "
    'rounded, as on a GPU'
)


def proof_engine(kind: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return engine options for a float16 file: ONNX Runtime on the CPU gets `round_fp16`.

    `kind` is a key of `BACKENDS`.
    """
    providers = engine.get('providers') or CPU
    on_cpu = providers == CPU or tuple(providers) == (CPU,)
    computes_in_float32 = 'round_fp16' in BACKENDS[kind].keys and on_cpu
    return {'round_fp16': True, **engine} if computes_in_float32 else dict(engine)


def judge_match_rate(results: Results, verdict: Verdict, rounded: bool) -> None:
    """Judge the results of all inputs; change cases, add reasons and notes.

    `rounded`: note that `proof_engine` rounded float16.
    """
    bars = verdict.bars
    results.cases, reason = accept_rate(accept_masks(results.cases, bars), bars)
    if reason:
        results.reasons.append(reason)
    verdict.notes.append(
        f'{verdict.precision}: judged with wider bars than float32: '
        f'{bars.text(place_text(str(verdict.subject.get("task")), bars))}'
    )
    if rounded:
        verdict.notes.append(ROUNDED)
