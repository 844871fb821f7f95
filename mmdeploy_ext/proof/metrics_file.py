"""What the test loop writes: the metrics of an engine beside those of PyTorch, in `metrics_<engine>.json`."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.files import read_json, write_json
from mmdeploy_ext.engines import BACKENDS, title_of
from mmdeploy_ext.proof.levels.metrics import metric_bar, metric_rows, metric_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SAME = ('config_sha256', 'checkpoint_sha256', 'samples', 'memory')
"""Facts of a run: metrics are compared where they are equal."""
NO_METRICS = (
    'the evaluator gave none, as it does where nothing was detected in any image; use a trained checkpoint '
    'and a data set of its classes, and a lower model.test_cfg.score_thr if there is one'
)


def keep_metrics(
    folder: Path, kind: str, metrics: Mapping[str, float], facts: Mapping[str, Any], precision: str
) -> bool:
    """Write `metrics_<engine>.json` and print this engine's metrics, beside PyTorch's when they are known.

    Args:
        folder: work directory of the `_pth` and the `_onnx` run.
        kind: registered name of the backend.
        metrics: by name.
        facts: `config`, `config_sha256`, `checkpoint_sha256`, `samples`, `processes` and `memory` of the run.
        precision: of the engine's network, see `metric_bar`.

    Returns:
        False when a metric differs from PyTorch's by more than the bar, or when neither engine has one.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    target, reference_path = folder / BACKENDS[kind].metrics, folder / BACKENDS['TorchBackend'].metrics
    write_json(target, dict(metrics=dict(metrics), engine=kind, **facts, made=made))
    if kind == 'TorchBackend' or not reference_path.is_file():
        print(metrics)
        if not metrics:
            print(f'no metric: {NO_METRICS}')
        if kind != 'TorchBackend':
            print(f'PyTorch metrics are not known: run the _pth config to have {reference_path}')
        return True
    reference = read_json(reference_path)
    reference.setdefault('memory', 'keep')
    if any(reference.get(key) != facts[key] for key in SAME):
        print(metrics)
        print(f'{reference_path} is of another config, checkpoint, number of samples or memory: not compared')
        return True
    rows = metric_rows(reference['metrics'], metrics, metric_bar(precision))
    if not rows:
        print(f'NOT PROVEN: nothing was compared, neither PyTorch nor this engine has a metric: {NO_METRICS}')
        return False
    cli.stdout().print(metric_table(rows, title_of(kind)))
    print(
        f'PyTorch: {reference["config"]}, {reference["processes"]} process(es), {reference["made"]} '
        f'({reference_path}); this run: {target}'
    )
    equal = all(row.passed for row in rows)
    if not equal:
        print('NOT PROVEN: the metrics differ; tools/deployment/verify.py says where the outputs do')
    return equal
