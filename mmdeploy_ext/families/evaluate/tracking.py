"""nuScenes-devkit's tracking metrics for mmdet3d's nuScenes data set: `--eval tracking`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import DataError, UsageError
from mmdeploy_ext.base.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.data import Dataset

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
