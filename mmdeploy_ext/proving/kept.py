"""The share of PyTorch's results kept by changed files, by half precision's bars, on a CPU."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.graph.io import files as graph_files
from mmdeploy_ext.graph.passes.precision import with_fp16_metadata
from mmdeploy_ext.quantize.search import Kept
from mmdeploy_ext.util.errors import UsageError
from mmdeploy_ext.verdict.results import MODE_TITLES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.verdict.results import MetricRow
    from mmdeploy_ext.verdict.verdict import Verdict


def on_files(
    paths: Sequence[str], models: Mapping[str, onnx.ModelProto], judge: Callable[[Sequence[str]], Any]
) -> Any:
    """Replace files of one export by `models` (path -> graph); judge them."""
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        if len(paths) > 1:
            for path in Path(paths[0]).parent.iterdir():
                if path.is_file() and str(path) not in models:
                    shutil.copy(path, folder)
        for path, model in models.items():
            graph_files.save(with_fp16_metadata(model, False, ()), Path(folder) / Path(path).name)
        return judge([str(Path(folder) / Path(path).name) for path in paths])


def results_kept(verdict: Verdict) -> Kept:
    """Count matched results; free-running ones of a drive."""
    rows = [entry.figures for entry in verdict.with_figure('frames') if entry.subject == MODE_TITLES['free']]
    rows = rows or [entry.figures for entry in verdict.with_figure('image')]
    return Kept(sum(row['matched'] for row in rows), sum(row['reference'] for row in rows))


def metric_kept(rows: Sequence[MetricRow], name: str) -> Kept:
    """Return a data set metric; UsageError: the evaluator has no such number."""
    row = next((row for row in rows if row.name == name), None)
    if row is None:
        raise UsageError(f'--keep-metric {name}: expected one of {", ".join(row.name for row in rows)}')
    return Kept(row.candidate, row.reference, name)
