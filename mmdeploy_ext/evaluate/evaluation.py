"""Data sets by mmdet's loader and evaluators, the same for every engine.

A sample of a data set is what its test pipeline returns, a dict such as that of mmdet's `Collect`; the result
of a sample is what the test path of its detectors returns for one, such as a list with an array (n, 5) of x1,
y1, x2, y2, score per class for mmdet's boxes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import numbers
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import ConfigError, DataError, root_cause
from mmdeploy_ext.evaluate import tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.data import DataLoader, Dataset

HOOK_KEYS = (
    'interval',
    'dynamic_intervals',
    'by_epoch',
    'start',
    'save_best',
    'rule',
    'greater_keys',
    'less_keys',
    'test_fn',
    'file_client_args',
    'tmpdir',
    'gpu_collect',
    'broadcast_bn_buffer',
)
"""Keys of a config's `evaluation` that mmcv's hook for evaluations in a training takes, not the evaluator.

The hook has an `out_dir`, too; here it is the evaluator's.
"""
OUTPUT_KEYS = ('classwise', 'logger', 'out_dir', 'pipeline', 'show')
"""Arguments of evaluators that decide only what is printed, drawn or written, as those with `_prefix` do."""


def _check_files(dataset_cfg: Mapping[str, Any], config: str) -> None:
    """Refuse a data set whose files are missing; the DataError names the key.

    Annotations are one file, or a folder with a file for each picture.
    """
    root = dataset_cfg.get('data_root') or ''
    checks = ('ann_file', 'file or folder', os.path.exists), ('img_prefix', 'folder', os.path.isdir)
    for key, kind, exists in checks:
        value = dataset_cfg.get(key)
        if isinstance(value, str) and value:
            path = value if value.startswith(root) else os.path.join(root, value)
            if not (exists(path) or exists(value)):
                raise DataError(
                    f'{config}: data.test.{key}={path}: no such {kind}; '
                    f'docs/your-checkpoint.md, "Data", tells where data sets are looked for'
                )


def _prepared(pipeline: Callable[[dict[str, Any]], Any], results: dict[str, Any]) -> Any:
    """Prepare one sample, of any kind, by the pipeline of its data set; the DataError names it."""
    name = (results.get('img_info') or {}).get('filename') or f'sample {results.get("sample_idx", "")}'
    path = os.path.join(results.get('img_prefix') or '', name).strip()
    try:
        return pipeline(results)
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise DataError(
            f'{path}: cannot be prepared ({reason}); expected a sample that the '
            f'test pipeline of the config can load'
        ) from error


def dataset_builder() -> Callable[[Mapping[str, Any]], Dataset]:
    """Return the function `build_dataset` of mmdet3d if a config has imported it, otherwise that of mmdet.

    It takes the config of a data set and returns the data set; mmdet3d's function builds mmdet's, too.
    """
    if 'mmdet3d.datasets' in sys.modules:
        from mmdet3d.datasets import build_dataset as build
    else:
        from mmdet.datasets import build_dataset as build
    return build


def build_dataset(cfg: Any) -> Dataset:
    """Build the test data set of a config, `data.test`, in test mode.

    Its pipeline is wrapped: a sample that cannot be prepared raises a DataError that names its file, or the
    `sample_idx` of one that has no picture's file. The pipelines of data sets inside another, as mmdet's
    ConcatDataset has them, stay as they are, and so does their `test_mode`.

    Raises:
        DataError: its files are missing, its class is unknown or refuses them, or it has no sample.
        ConfigError: the config has no data set there, or a list of data sets.
    """
    dataset_cfg = (cfg.get('data') or {}).get('test')
    if not isinstance(dataset_cfg, dict):
        raise ConfigError(f'{cfg.filename}: data.test is {type(dataset_cfg).__name__}, expected one data set')
    dataset_cfg = dataset_cfg.copy()
    dataset_cfg['test_mode'] = True
    dataset_cfg.pop('samples_per_gpu', None)  # of the loader; mmdet's tools take it out, too
    _check_files(dataset_cfg, cfg.filename)
    try:
        dataset = dataset_builder()(dataset_cfg)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        cause = root_cause(error)
        raise DataError(
            f'{cfg.filename}: data.test ({dataset_cfg.get("ann_file")}) cannot be read: '
            f'{type(cause).__name__}: {cause}; expected the annotations of a {dataset_cfg.get("type")}'
        ) from error
    if len(dataset) == 0:
        raise DataError(f'{cfg.filename}: data.test has no sample ({dataset_cfg.get("ann_file")})')
    if hasattr(dataset, 'pipeline'):
        dataset.pipeline = functools.partial(_prepared, dataset.pipeline)
    return dataset


@dataclasses.dataclass(eq=False)
class _Samples:
    """Samples of a data set, in whose pipeline numpy and `random` draw by the index of the sample alone.

    Otherwise two engines would get different inputs: mmdet3d's LoadPointsFromMultiSweeps draws sweeps of the
    past in tests as well, unless it has `test_mode`. Measured: mAP 0.152 and 0.156 of one model.
    """

    dataset: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        """Return a sample, and restore the generators."""
        index = self.indices[position]
        states = random.getstate(), np.random.get_state()
        random.seed(index)
        np.random.seed(index)
        try:
            return self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def build_loader(
    dataset: Dataset, indices: Sequence[int], samples_per_gpu: int = 1, workers_per_gpu: int = 2, **rest: Any
) -> DataLoader:
    """Return mmdet's test loader for some samples of a data set, in the order of `indices`.

    Its batches are collated by mmcv, with `DataContainer`s. What a pipeline draws with the global generators
    of numpy and `random` follows from the index of the sample alone, so that every engine gets the same
    inputs.

    Args:
        dataset: built by `build_dataset`.
        indices: indices of the samples in the data set.
        samples_per_gpu: size of a batch.
        workers_per_gpu: number of processes that read; 0: this one reads.
        rest: further arguments of mmdet's `build_dataloader`.
    """
    from mmdet.datasets import build_dataloader

    samples = _Samples(dataset, indices)
    return build_dataloader(samples, samples_per_gpu, workers_per_gpu, dist=False, shuffle=False, **rest)


@contextlib.contextmanager
def loader_errors() -> Iterator[None]:
    """Reduce a DataError of the block to the last line of its message.

    A process of a loader puts its traceback before the message.
    """
    try:
        yield
    except DataError as error:
        raise DataError(str(error).strip().splitlines()[-1].split('DataError: ')[-1]) from error


def _evaluator_arguments(cfg: Any) -> dict[str, Any]:
    """Return the arguments of the evaluator in the config's `evaluation`, which has those of a hook, too."""
    return {key: value for key, value in (cfg.get('evaluation') or {}).items() if key not in HOOK_KEYS}


def settings_text(cfg: Any, metrics: Sequence[str], options: Mapping[str, Any] | None = None) -> str:
    """Return a JSON text of all that decides the values of an evaluation, apart from results and data set.

    The arguments are those of `evaluate`. Arguments that decide only what is printed, drawn or written are
    left out.
    """
    settings = {**_evaluator_arguments(cfg), **dict(options or {}), 'metric': sorted(metrics)}
    decisive = {
        key: value
        for key, value in settings.items()
        if key not in OUTPUT_KEYS and not key.endswith('_prefix')
    }
    return json.dumps(decisive, sort_keys=True, default=str)


def evaluate(
    cfg: Any,
    dataset: Dataset,
    results: Sequence[Any],
    metrics: Sequence[str],
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate results with the data set's own evaluator.

    Args:
        cfg: the config, whose `evaluation` has further arguments of the evaluator.
        dataset: built by `build_dataset`.
        results: a result per sample, in the order of the data set, as its evaluator takes them.
        metrics: names of metrics of this evaluator, such as 'bbox'. For mmdet3d's nuScenes 'tracking'
            evaluates boxes in 3D with the ids of tracks by nuScenes' devkit; to a data set that evaluates
            tracks itself the name is passed on. So is an empty list.
        options: further arguments of the evaluator (`--eval-options`), over those of the config; with None
            nothing is replaced. nuScenes' devkit takes neither for 'tracking'.

    Returns:
        Name -> value of every number that the evaluator gives, in its units (mmdet's mAP is in 0..1); texts
        and tables are left out.

    Raises:
        ConfigError: the evaluator raised a KeyError, as for a metric that it does not have, or a TypeError,
            as for an unknown argument; the message names --eval or --eval-options.
        DataError: the evaluator refuses the results or tables.
        UsageError: 'tracking' without the package that it needs.
    """
    metrics, track_values = list(metrics), {}
    if tracking.is_by_devkit(dataset, metrics):
        track_values = tracking.evaluate_tracks(dataset, results)
        metrics.remove(tracking.METRIC)
        if not metrics:
            return track_values
    try:
        settings = dict(_evaluator_arguments(cfg), metric=metrics, **dict(options or {}))
        values = dataset.evaluate(results, **settings)
    except TypeError as error:
        raise ConfigError(f'--eval-options: {error}') from error
    except KeyError as error:
        raise ConfigError(f'--eval {" ".join(metrics)}: {error.args[0] if error.args else error}') from error
    except AssertionError as error:  # nuScenes' devkit, if the samples are not those of its split
        raise DataError(f'--eval {" ".join(metrics)}: the evaluator refused: {error}') from error
    metric_values = {key: float(value) for key, value in values.items() if isinstance(value, numbers.Real)}
    return {**metric_values, **track_values}


def check_evaluation(cfg: Any, dataset: Dataset, metrics: Sequence[str] = ()) -> None:
    """Refuse metrics that COCO's evaluator has not, and a nuScenes data set without its tables, JSON files.

    It is called before hours of inference; other evaluators are not asked. `cfg` is for messages.

    Raises:
        ConfigError: one of the `metrics` is none of mmdet's `CocoDataset`, whose evaluator the data set has.
        DataError: the folder that its evaluator reads is missing, or the devkit is to evaluate 'tracking' and
            the tables are of another version than those in `tracking.SPLITS`.
        UsageError: one of the `metrics` needs a package that is not installed.
    """
    if tracking.is_by_devkit(dataset, metrics):
        tracking.check_available(dataset)
    from mmdet.datasets import CocoDataset

    if metrics and getattr(type(dataset), 'evaluate', None) is CocoDataset.evaluate:
        try:
            with contextlib.suppress(AssertionError):  # about the number of results, after the metrics
                dataset.evaluate([], metric=list(metrics))
        except KeyError as error:
            raise ConfigError(f'{cfg.filename}: --eval {" ".join(metrics)}: {error.args[0]}') from error
    root, version = getattr(dataset, 'data_root', None), getattr(dataset, 'version', None)
    if root and version and not Path(root, version).is_dir():
        raise DataError(
            f'{cfg.filename}: data.test: {Path(root, version)}: no such folder; --eval needs the tables of '
            f'nuScenes, which its evaluator reads there'
        )


def work_dir_name(config: str) -> str:
    """Return the name of a config file (a path) without suffix, and without `_pth` or `_onnx` at its end.

    Configs of a model for PyTorch and for ONNX differ in that end, and their runs share one folder.
    """
    return Path(config).stem.removesuffix('_pth').removesuffix('_onnx')
