"""Time of the test path in PyTorch, and with ONNX Runtime in place of the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.bench.benchmark.measure import Contender, interleave, summarise, timed
from mmdeploy_ext.engines.registry import BASELINE
from mmdeploy_ext.proving.parts.samples import run_test_path
from mmdeploy_ext.proving.parts.swap import open_sessions, swapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.model import ModelFactory

SWAPPED = 'parts in ONNX Runtime'


def time_parts(
    factory: ModelFactory, folder: CutFolder, samples: Sequence[Any], rounds: int, warmup: int
) -> list[dict[str, Any]]:
    """Run both in turns on the same samples; return a row of `summarise` for each, PyTorch first."""
    model, own_model, sessions = factory.make(), factory.make(), open_sessions(folder)

    def run_parts(sample: Any) -> None:
        with swapped(own_model, sessions):
            run_test_path(own_model, sample)

    contenders = [
        Contender(BASELINE, BASELINE, '', timed(lambda sample: run_test_path(model, sample))),
        Contender(SWAPPED, 'onnxruntime', 'parts', timed(run_parts), str(folder.path)),
    ]
    return summarise(contenders, interleave(contenders, samples, rounds, warmup), batch=1)
