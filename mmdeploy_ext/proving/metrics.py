"""Level 5 of a proof: one data set, one loader, one evaluator, two engines."""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import math
import re
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import read_json, write_json
from mmdeploy_ext.engines import BACKENDS, title_of
from mmdeploy_ext.families.evaluate.evaluation import build_dataset, evaluate, inner_datasets
from mmdeploy_ext.families.evaluate.loop import run_dataset
from mmdeploy_ext.spec.results import MetricRow, bars_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.utils.data import Dataset

    from mmdeploy_ext.families.evaluate.loop import Network

SAME = (
    'config_sha256',
    'checkpoint_sha256',
    'code_sha256',
    'dataset_sha256',
    'samples',
    'memory',
    'input_size',
    'evaluation',
)
"""Facts that have to be equal to compare two runs' metrics."""
NO_METRICS = (
    'the evaluator returned none, which happens if no image has a detection; use a trained checkpoint, a '
    'data set of its classes and a lower test_cfg.score_thr'
)
"""Reason why there is no metric, and the remedy."""
NO_VALUES = 'every metric is NaN or -1 on both sides, because the data set has no object of these classes'
"""Reason why nothing was compared although the evaluator gives metrics."""
HEADLINE = re.compile(r'(^|[/_])(NDS|mAP|AP|PQ|AMOTA|mAP_0\.\d+|Overall_3D(_AP\d+)?_moderate)$')
"""Metrics of a summary: COCO, VOC, LVIS, nuScenes, panoptic maps, indoor sets and KITTI."""


def metric_rows(
    reference: Mapping[str, float], candidate: Mapping[str, float], bar: float
) -> list[MetricRow]:
    """Return a row for each metric by name; a metric of one engine alone fails."""
    rows = []
    for name in sorted(reference.keys() | candidate.keys()):
        expected, got = reference.get(name, math.nan), candidate.get(name, math.nan)
        both_nan = math.isnan(expected) and math.isnan(got) and name in reference and name in candidate
        rows.append(MetricRow(name, expected, got, bar, both_nan or abs(expected - got) <= bar))
    return rows


def proof_rows(reference: Mapping[str, float], candidate: Mapping[str, float], bar: float) -> list[MetricRow]:
    """Return `metric_rows`, with a failing row if no metric has a value."""
    rows = metric_rows(reference, candidate, bar)
    if any(map(has_value, rows)):
        return rows
    name = f'none: {NO_VALUES}' if rows else 'none: neither engine found anything'
    return [*rows, MetricRow(name, math.nan, math.nan, bar, False)]


def near_zero_notes(rows: Sequence[MetricRow]) -> list[str]:
    """A note if all headline metrics are near zero, at which equal ones say little."""
    headlines = [row for row in rows if HEADLINE.search(row.name)] or rows
    if not headlines or not all(row.reference < NEAR_ZERO for row in headlines):
        return []
    return [f'metrics: all are below {NEAR_ZERO}, too low to prove much: use a trained checkpoint']


NEAR_ZERO = 0.01


def has_value(row: MetricRow) -> bool:
    return any(not math.isnan(value) and value != -1 for value in (row.reference, row.candidate))


def compare_metrics(
    cfg: Any,
    reference: Network,
    candidate: Network,
    metrics: Sequence[str],
    precision: str,
    half: int | None = None,
) -> list[MetricRow]:
    """Evaluate the config's test set with two networks and compare the `metrics`, such as 'bbox'.

    `half`: see `half_of`; None: the whole set.
    """
    dataset, values = build_dataset(cfg), []
    if half is not None:
        dataset = half_of(dataset, half)
    for network in (reference, candidate):
        results = run_dataset(network, cfg, dataset)
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's own table, once per engine
            try:
                values.append(evaluate(cfg, dataset, results, metrics))
            except DataError as error:
                if half is None:
                    raise
                raise DataError(
                    f'--keep-metric, on half of the samples: {error}; use --keep-results'
                ) from error
    return proof_rows(*values, bars_of(precision).metric)


OF_SAMPLES = ('data_infos', 'img_ids', 'proposals')
"""Attributes of a data set with an entry per sample."""


def half_of(dataset: Dataset, half: int) -> Dataset:
    """Every other sample of a data set, or every other scene, from the first (0) or second (1) on.

    DataError: fewer than two samples or scenes, or a data set without a list of samples.
    """
    infos = getattr(dataset, 'data_infos', ())
    if len(infos) != len(dataset) or inner_datasets(dataset) != [dataset]:
        raise DataError(
            f'--keep-metric: a {type(dataset).__name__} cannot be divided into samples for the search and '
            'for its result; set data.test to one data set with `data_infos`, or use --keep-results'
        )
    scenes = [info.get('scene_token', place) for place, info in enumerate(infos)]
    chosen = [*dict.fromkeys(scenes)][half::2]
    places = [place for place, scene in enumerate(scenes) if scene in chosen]
    if not 0 < len(places) < len(infos):
        raise DataError('--keep-metric: the data set has one sample or scene, expected at least two')
    part = copy.copy(dataset)
    for name in OF_SAMPLES:
        entries = getattr(dataset, name, None)
        if entries is not None and len(entries) == len(infos):
            setattr(part, name, [entries[place] for place in places])
    return part


def metric_table(rows: Sequence[MetricRow], engine: str) -> Table:
    table = Table(title='same data set, loader and evaluator for both engines')
    for title in ('metric', 'PyTorch', engine, 'difference', 'bar', 'verdict'):
        table.add_column(title, justify='left' if title == 'metric' else 'right')
    for row in rows:
        values = f'{row.reference:.4f}', f'{row.candidate:.4f}', f'{row.candidate - row.reference:+.6f}'
        table.add_row(row.name, *values, f'{row.bar:g}', 'equal' if row.passed else 'DIFFERS')
    return table


def summary(metrics: Mapping[str, float]) -> str:
    """Return 'name value' of the headline metrics, such as NDS and mAP, else of the first metric."""
    names = [name for name in metrics if HEADLINE.search(name)] or list(metrics)[:1]
    return ', '.join(f'{name} {metrics[name]:.4f}' for name in names) or 'no metric'


def keep_metrics(
    folder: Path, kind: str, metrics: Mapping[str, float], facts: Mapping[str, Any], precision: str
) -> bool:
    """Write an engine's metrics into `folder`, and compare them with PyTorch's if present.

    - `kind`: registered name of the backend, such as 'OnnxRuntimeBackend'.
    - `metrics`: name -> value.
    - `facts`: `config`, `processes`, and the facts `SAME` of the run.

    Returns True without a comparison; else whether all metrics agree and one has a value.
    """
    time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    target, reference_path = folder / BACKENDS[kind].metrics, folder / BACKENDS['TorchBackend'].metrics
    write_json(target, dict(metrics=dict(metrics), engine=kind, **facts, made=time))
    if kind == 'TorchBackend' or not reference_path.is_file():
        print(metrics)
        if not metrics:
            print(f'no metric: {NO_METRICS}')
        if kind != 'TorchBackend':
            print(f'the metrics of PyTorch are missing: run with --torch to write {reference_path}')
        return True
    reference = read_json(reference_path)
    reference = reference if isinstance(reference, dict) else {}
    if any(reference.get(key) != facts[key] for key in SAME):
        print(metrics)
        changed = (
            'config, checkpoint, source of the model, data set, number of samples, memory, size of the input '
            '(backend_config.shape), or metrics and options of the evaluation'
        )
        print(f'{reference_path} was written with another {changed}: not compared')
        return True
    values = reference.get('metrics')
    is_whole = {'config', 'processes', 'made'} <= reference.keys() and isinstance(values, dict)
    if not is_whole or not all(isinstance(value, int | float) for value in values.values()):
        raise UsageError(
            f'{reference_path}: was not written by a run in PyTorch; delete it and run with --torch again'
        )
    rows = metric_rows(values, metrics, bars_of(precision).metric)
    if not rows:
        print(f'NOT PROVEN: nothing was compared, neither PyTorch nor this engine has a metric: {NO_METRICS}')
        return False
    cli.stdout().print(metric_table(rows, title_of(kind)))
    print(
        f'PyTorch ({reference["config"]}, processes: {reference["processes"]}, {reference["made"]}, '
        f'{reference_path}): {summary(values)}'
    )
    equal = all(row.passed for row in rows)
    if equal and not any(map(has_value, rows)):
        print(f'NOT PROVEN: nothing was compared, {NO_VALUES}')
        return False
    if not equal:
        print(f'NOT PROVEN: the metrics differ; {tool("verify")} shows where the outputs differ')
    return equal
