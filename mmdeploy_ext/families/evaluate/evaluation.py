"""Data sets by mmdet's loaders and evaluators, alike for every engine.

A result is the output of a detector's test path for a sample, such as (n, 5) x1, y1, x2, y2, score per class.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import numbers
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.config import INNER_DATASETS, test_datasets
from mmdeploy_ext.base.errors import ConfigError, DataError, UsageError, one_line, root_cause
from mmdeploy_ext.base.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.data import DataLoader, Dataset


# nuScenes-devkit's tracking metrics for mmdet3d's nuScenes data set: `--eval tracking`.


METRIC = 'tracking'
RULES = 'tracking_nips_2019'
SPLITS = {'v1.0-mini': 'mini_val', 'v1.0-trainval': 'val'}
"""Version of the tables -> split."""
THRESHOLD = 0.2
"""Smallest score of a box: Sparse4D's `tracking_threshold`."""
RATES = ('amota', 'amotp', 'recall', 'motar', 'mota', 'motp')
"""Compared metrics: shares of 1, but `amotp` and `motp` in metres. Counts are left out."""


def is_by_devkit(dataset: Dataset, metrics: Sequence[str]) -> bool:
    """Whether the devkit evaluates tracks; Sparse4D's data set does it itself (`track3d_eval_configs`)."""
    is_nuscenes = hasattr(dataset, 'eval_detection_configs')
    return METRIC in metrics and is_nuscenes and not hasattr(dataset, 'track3d_eval_configs')


def check_available(dataset: Any) -> None:
    """Check a nuScenes data set for tracking."""
    if dataset.version not in SPLITS:
        raise DataError(
            f'--eval {METRIC}: the tables are {dataset.version!r}; expected {" or ".join(SPLITS)}, for '
            'which the devkit has true tracks'
        )
    try:
        import nuscenes.eval.tracking.evaluate  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f'--eval {METRIC}: the nuScenes devkit needs motmetrics ({error}); run pip install '
            '"motmetrics>=1.4" (extra "tracking" of mm2onnx)'
        ) from error


def track_entries(dataset: Any, results: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """Boxes with track ids, as nuScenes' tracking challenge takes them.

    `results` have `boxes_3d` (LiDAR frame), `scores_3d`, `labels_3d`, `instance_ids` (n,) and perhaps
    `cls_scores` (n,). Boxes with id -1, of untracked classes or out of range are dropped.

    Returns:
        Sample token -> dicts: `translation` and `size` (w, l, h) in metres, `rotation` (w, x, y, z),
        `velocity` (x, y) in m/s, global frame; `sample_token`, `tracking_id` (text), `tracking_name`,
        `tracking_score`.
    """
    from mmdet3d.datasets.nuscenes_dataset import lidar_nusc_box_to_global, output_to_nusc_box
    from nuscenes.eval.common.config import config_factory

    tracked, threshold = (
        config_factory(RULES).tracking_names,
        getattr(dataset, 'tracking_threshold', THRESHOLD),
    )
    entries = {}
    for info, result in zip(dataset.data_infos, results, strict=True):
        if 'boxes_3d' not in result:
            (result,) = result.values()
        if 'instance_ids' not in result:
            raise DataError(
                f'--eval {METRIC}: the results have no track ids; this model does not track objects'
            )
        ids, scores = result['instance_ids'], result.get('cls_scores', result['scores_3d'])
        boxes = []
        rows = zip(output_to_nusc_box(result), ids.tolist(), (scores >= threshold).tolist(), strict=True)
        for box, track_id, passes in rows:
            if passes and track_id >= 0 and dataset.CLASSES[box.label] in tracked:
                box.token = str(track_id)
                boxes.append(box)
        boxes = lidar_nusc_box_to_global(
            info, boxes, dataset.CLASSES, dataset.eval_detection_configs, dataset.eval_version
        )
        entries[info['token']] = [
            dict(
                sample_token=info['token'],
                translation=box.center.tolist(),
                size=box.wlh.tolist(),
                rotation=box.orientation.elements.tolist(),
                velocity=box.velocity[:2].tolist(),
                tracking_id=box.token,
                tracking_name=dataset.CLASSES[box.label],
                tracking_score=float(box.score),
            )
            for box in boxes
        ]
    return entries


def evaluate_tracks(dataset: Any, results: Sequence[Any]) -> dict[str, float]:
    """`tracking/<name>` -> value of `RATES` by the devkit; ids count within a scene."""
    check_available(dataset)
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.tracking.evaluate import TrackingEval

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'tracks.json')
        write_json(path, dict(meta=dict(dataset.modality), results=track_entries(dataset, results)))
        evaluator = TrackingEval(
            config=config_factory(RULES),
            result_path=str(path),
            eval_set=SPLITS[dataset.version],
            output_dir=folder,
            nusc_version=dataset.version,
            nusc_dataroot=dataset.data_root,
            verbose=False,
        )
        metrics, _ = evaluator.evaluate()
    values = metrics.serialize()
    return {f'{METRIC}/{name}': float(values[name]) for name in RATES}


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
"""Keys of `evaluation` for mmcv's training hook."""
OUTPUT_KEYS = ('classwise', 'logger', 'out_dir', 'pipeline', 'show')
"""Arguments of evaluators that only change prints, drawings and files."""


class AbsentDataError(DataError):
    """A data set without its files."""


def _check_files(dataset_cfg: Mapping[str, Any], config: str) -> None:
    root = dataset_cfg.get('data_root') or ''
    checks = ('ann_file', 'file or folder', os.path.exists), ('img_prefix', 'folder', os.path.isdir)
    for key, kind, exists in checks:
        values = dataset_cfg.get(key)
        for value in filter(None, [values] if isinstance(values, str) else values or ()):
            path = value if value.startswith(root) else os.path.join(root, value)
            if not (exists(path) or exists(value)):
                raise AbsentDataError(
                    f'{config}: data.test.{key}={path}: no such {kind}; '
                    f'docs/evaluate.md, "Your model and data", lists the folders of data sets'
                )


def _prepared(pipeline: Callable[[dict[str, Any]], Any], results: dict[str, Any]) -> Any:
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
    """mmdet3d's `build_dataset` if it is imported, else mmdet's."""
    if 'mmdet3d.datasets' in sys.modules:
        from mmdet3d.datasets import build_dataset as build
    else:
        from mmdet.datasets import build_dataset as build
    return build


def build_dataset(cfg: Any) -> Dataset:
    """Build `data.test` in test mode; an unreadable sample raises DataError with its file or `sample_idx`.

    As in mmdet's `tools/test.py` a list is joined, and batches are padded (`replace_ImageToTensor`).
    """
    from mmdet.datasets import replace_ImageToTensor

    section = copy.deepcopy((cfg.get('data') or {}).get('test'))
    if not section or not isinstance(section, dict | list | tuple):
        raise ConfigError(
            f'{cfg.filename}: data.test is {type(section).__name__}, expected a data set, or a list of them'
        )
    in_batches = loader_settings(cfg).get('samples_per_gpu', 1) > 1
    inner = [*test_datasets(dict(data=dict(test=section)))]
    for settings in inner:
        settings.pop('samples_per_gpu', None)  # of the loader
        if not any(settings.get(name) for name in INNER_DATASETS):
            settings['test_mode'] = True
            _check_files(settings, cfg.filename)
        if in_batches and settings.get('pipeline'):
            settings['pipeline'] = replace_ImageToTensor(settings['pipeline'])
    files = ', '.join(str(settings['ann_file']) for settings in inner if settings.get('ann_file'))
    try:
        dataset = dataset_builder()(section)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, NotImplementedError) as error:
        cause = root_cause(error)
        raise DataError(
            f'{cfg.filename}: data.test ({files}) cannot be read: {type(cause).__name__}: {cause}; expected '
            f'the annotations of a {inner[-1].get("type")}'
        ) from error
    if len(dataset) == 0:
        raise DataError(f'{cfg.filename}: data.test has no sample ({files})')
    for one in inner_datasets(dataset):
        if hasattr(one, 'pipeline'):
            one.pipeline = functools.partial(_prepared, one.pipeline)
    return dataset


def inner_datasets(dataset: Dataset) -> list[Dataset]:
    """The data sets that wrappers join or repeat, in order; [dataset] of one without a wrapper."""
    wrapped = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if wrapped[0] is None:
        return [dataset]
    return [inner for one in wrapped for inner in inner_datasets(one)]


def loader_settings(cfg: Any) -> dict[str, Any]:
    """Arguments of the test loader: `data.test_dataloader`, before it `samples_per_gpu` of `data.test`."""
    data = cfg.get('data') or {}
    sizes = [settings.get('samples_per_gpu') for settings in test_datasets(cfg)]
    settings = {'workers_per_gpu': data.get('workers_per_gpu', 2), **(data.get('test_dataloader') or {})}
    if any(sizes):
        settings['samples_per_gpu'] = max(filter(None, sizes))
    return settings


@dataclasses.dataclass(eq=False)
class _Samples:
    """Samples with random numbers seeded by their index, so that every engine gets the same inputs.

    mmdet3d's LoadPointsFromMultiSweeps draws sweeps without `test_mode`: mAP 0.152 and 0.156 of one model.
    """

    dataset: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
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
    """mmdet's test loader for samples in the order of `indices`, with random numbers seeded by index."""
    from mmdet.datasets import build_dataloader

    samples = _Samples(dataset, indices)
    return build_dataloader(samples, samples_per_gpu, workers_per_gpu, dist=False, shuffle=False, **rest)


@contextlib.contextmanager
def loader_errors() -> Iterator[None]:
    """Cut a DataError in the block to its last line, behind a loader's traceback; name a killed loader."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).strip().splitlines()[-1].split('DataError: ')[-1]) from error
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise DataError(
            f'a process that loads samples ended ({one_line(error)[:150]}), possibly out of memory; '
            '--cfg-options data.workers_per_gpu=0 loads samples in the main process'
        ) from error


def _evaluator_arguments(cfg: Any) -> dict[str, Any]:
    return {key: value for key, value in (cfg.get('evaluation') or {}).items() if key not in HOOK_KEYS}


def settings_text(cfg: Any, metrics: Sequence[str], options: Mapping[str, Any] | None = None) -> str:
    """JSON of everything that decides metrics, except results and data set."""
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
    """Evaluate results with the data set's own evaluator; return its numbers (mmdet's mAP is in 0..1).

    'tracking' of mmdet3d's nuScenes goes to nuScenes' devkit. `options` are `--eval-options`.
    """
    metrics, track_values = list(metrics), {}
    if is_by_devkit(dataset, metrics):
        track_values = evaluate_tracks(dataset, results)
        metrics.remove(METRIC)
        if not metrics:
            return track_values
    try:
        settings = dict(_evaluator_arguments(cfg), metric=metrics, **dict(options or {}))
        values = dataset.evaluate(results, **settings)
    except TypeError as error:
        raise ConfigError(f'--eval-options: {error}') from error
    except KeyError as error:
        raise ConfigError(f'--eval {" ".join(metrics)}: {error.args[0] if error.args else error}') from error
    except AssertionError as error:  # nuScenes' devkit, for samples of another split
        raise DataError(f'--eval {" ".join(metrics)}: the evaluator refused: {error}') from error
    metric_values = {key: float(value) for key, value in values.items() if isinstance(value, numbers.Real)}
    return {**metric_values, **track_values}


def check_evaluation(cfg: Any, dataset: Dataset, metrics: Sequence[str] = ()) -> None:
    """Check the evaluator, metrics of COCO and tables of nuScenes before inference."""
    if is_by_devkit(dataset, metrics):
        check_available(dataset)
    from mmdet.datasets import CocoDataset

    if metrics and not hasattr(dataset, 'evaluate'):
        kind = type(dataset).__name__
        raise ConfigError(
            f'{cfg.filename}: --eval: a {kind} has no evaluator; set data.test to its `dataset`'
        )
    if metrics and getattr(type(dataset), 'evaluate', None) is CocoDataset.evaluate:
        try:
            with contextlib.suppress(AssertionError):  # about the number of results, after the metrics
                dataset.evaluate([], metric=list(metrics))
        except KeyError as error:
            raise ConfigError(f'{cfg.filename}: --eval {" ".join(metrics)}: {error.args[0]}') from error
    root, version = getattr(dataset, 'data_root', None), getattr(dataset, 'version', None)
    if root and version and not Path(root, version).is_dir():
        raise DataError(
            f"{cfg.filename}: data.test: {Path(root, version)}: no such folder; --eval needs nuScenes' "
            'tables in it'
        )


def work_dir_name(config: str) -> str:
    """Stem of a config without `_pth` or `_onnx`: runs of both share a folder."""
    return Path(config).stem.removesuffix('_pth').removesuffix('_onnx')
