"""The tracking metrics of nuScenes-devkit for results whose boxes have track ids: `--eval tracking`.

A data set of the user's own that evaluates tracks does so by itself; this is for mmdet3d's nuScenes data set,
which evaluates detections alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import DataError, UsageError
from mmdeploy_ext.core.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.data import Dataset

METRIC = 'tracking'
"""Name of the metric on the command line."""
RULES = 'tracking_nips_2019'
"""Name of the devkit's settings of its tracking challenge."""
SPLITS = {'v1.0-mini': 'mini_val', 'v1.0-trainval': 'val'}
"""Version of the tables -> the devkit's name of the split that is evaluated."""
THRESHOLD = 0.2
"""Smallest score of a box that takes part, which is Sparse4D's `tracking_threshold`."""
RATES = ('amota', 'amotp', 'recall', 'motar', 'mota', 'motp')
"""Metrics that are compared between engines: shares of 1, but for `amotp` and `motp`, which are metres.

The devkit's counts, such as `ids`, are left out.
"""


def is_by_devkit(dataset: Dataset, metrics: Sequence[str]) -> bool:
    """Return whether tracks are evaluated here: of mmdet3d's nuScenes, with 'tracking' among the metrics.

    Sparse4D's own data set evaluates tracks; it has `track3d_eval_configs`.
    """
    is_nuscenes = hasattr(dataset, 'eval_detection_configs')
    return METRIC in metrics and is_nuscenes and not hasattr(dataset, 'track3d_eval_configs')


def check_available(dataset: Any) -> None:
    """Refuse the metric for a data set of nuScenes, before hours of inference.

    Raises:
        DataError: its tables are of another version than those in `SPLITS`.
        UsageError: motmetrics, which the devkit imports for the metric, is not installed.
    """
    if dataset.version not in SPLITS:
        raise DataError(
            f'--eval {METRIC}: the tables are {dataset.version!r}; expected {" or ".join(SPLITS)}, of which '
            f'the devkit has true tracks'
        )
    try:
        import nuscenes.eval.tracking.evaluate  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f'--eval {METRIC}: the devkit of nuScenes needs motmetrics for it ({error}); '
            f'pip install "motmetrics>=1.4", the extra "tracking" of mm2onnx'
        ) from error


def track_entries(dataset: Any, results: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the boxes with track ids as nuScenes' tracking challenge takes them.

    Args:
        dataset: mmdet3d's nuScenes data set; a `tracking_threshold` of its own stands for `THRESHOLD`.
        results: per sample `boxes_3d` (in the LiDAR frame), `scores_3d`, `labels_3d`, `instance_ids` (n,),
            and perhaps `cls_scores` (n,), to which the threshold is applied then, row by row; or a dict with
            one such entry. Boxes without an id, -1, of classes that are not tracked, and beyond the range in
            which nuScenes evaluates their class are left out.

    Returns:
        Sample token -> a dict per box: `translation` (the centre) and `size` (w, l, h) in metres, `rotation`
        (w, x, y, z) and `velocity` (x, y) in m/s, in the global frame; `sample_token`, `tracking_id` (text),
        `tracking_name` and `tracking_score`.

    Raises:
        DataError: results without track ids.
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
                f'--eval {METRIC}: the results have no track ids; this model does not follow objects'
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
    """Return `tracking/<name>` -> value of `RATES`, by the devkit's own evaluator; see `track_entries`.

    Identities count within a scene: an id may be used again in another one.

    Raises:
        UsageError: motmetrics is not installed.
        DataError: results without track ids, or see `check_available`.
    """
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
