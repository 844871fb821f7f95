"""Compares frames and sweeps prepared by a file's rule and by the data set class."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import DataError, Mm2OnnxError, one_line, root_cause
from mmdeploy_ext.base.source_code import is_users_class
from mmdeploy_ext.families.evaluate.evaluation import build_dataset, build_loader, loader_errors
from mmdeploy_ext.families.evaluate.loop import DatasetFrames
from mmdeploy_ext.proving.preprocessing.pictures import first_after, watched
from mmdeploy_ext.spec.results import PreprocessingDifference, PreprocessingResult
from mmdeploy_ext.upstream.models.building import data_class

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Sweep

OF_DATASET = 2
"""Number of compared samples of the user's data set."""
EXACT = ('images', 'points', 'timestamp_s', 'camera_times_s', 'scene_token', 'command')
"""Values that have to be equal (`images` unless the data set has a `picture_rtol`)."""
NEAR = ('lidar2img', 'intrinsics', 'ego_pose')
"""Matrices, which data sets keep in float32."""
OPTIONAL = ('ego_pose', 'timestamp_s', 'camera_times_s', 'scene_token', 'command')
"""Values that a data set may lack, see `Frame`."""
MATRIX_RTOL = 2e-6
"""Tolerance of matrices, relative to the largest value: three products of float32."""
RECORD_RTOL = 1e-9
"""Tolerance of a CAN bus record, relative to its largest value (metres): float64."""
READABLE = 'run the proof where data.test.ann_file exists, so that its samples are compared'
"""Advice for a data set that cannot read generated infos."""


def compare_prepared(
    detector: Detector, rule: Any, samples: Collection[Any], unit: str
) -> PreprocessingResult:
    """Compare frames or sweeps prepared by the rule and by the data set class.

    `rule` is `Metadata.preprocess`; `unit` is 'frame' or 'sweep'.
    """
    compared: list[tuple[str, list[PreprocessingDifference], list[str]]] = []
    error, notes = '', []
    of_dataset = []
    if isinstance(samples, DatasetFrames) and hasattr(samples.dataset, 'data_infos'):
        count = len(samples.indices)
        positions = (0, count // 2) if count > OF_DATASET else range(count)
        of_dataset = [(samples.dataset, samples.indices[position]) for position in positions]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            generated = detector.family.data.generated_dataset(folder, detector.cfg, detector.rule)
            notes += _notes_on_generated(detector.cfg, generated)
            try:
                for dataset, index in _generated_moments(detector, generated):
                    compared.append(_compare_moment(detector, rule, dataset, index, folder))
            except UnreadError as unread:
                if not of_dataset:
                    raise DataError(f'{unread} for generated infos; {READABLE}') from unread
                notes.append(f'without generated {unit}s ({one_line(unread)})')
            for dataset, index in of_dataset:
                compared.append(_compare_moment(detector, rule, dataset, index, folder))
    except Mm2OnnxError as raised:
        error = one_line(raised)[:300]
    titles = tuple(title for title, _, _ in compared)
    differences = tuple(difference for _, of_moment, _ in compared for difference in of_moment)
    if absent := dict.fromkeys(name for _, _, missing in compared for name in missing):
        notes.append(f'without {", ".join(absent)}, missing in the samples of the data set')
    return PreprocessingResult(titles, unit, differences, gaps=tuple(notes), error=error)


class UnreadError(Mm2OnnxError):
    """A data set class (`kind`) raised `error`."""

    def __init__(self, kind: str, error: BaseException) -> None:
        reason = f'{type(error).__name__}: {one_line(error)}' if str(error) else type(error).__name__
        super().__init__(f'{kind} of data.test raised {reason[:150]}')


def _notes_on_generated(cfg: Any, generated: Mapping[str, Any]) -> Iterator[str]:
    if generated['pipeline'] != test_pipeline(cfg):
        yield 'without test-time augmentation'
    kind = data_class(test_dataset(cfg).get('type'), 'DATASETS')
    if kind not in (None, data_class(generated['type'], 'DATASETS')) and is_users_class(kind):
        yield f'without {kind.__name__} of data.test: its files have another format'


def _generated_moments(detector: Detector, generated: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    cfg = copy.deepcopy(detector.cfg)
    classes = generated.get('classes') or list(detector.classes)
    cfg.data = dict(cfg.get('data') or {}, test=dict(generated, classes=classes))
    try:
        dataset = build_dataset(cfg)
    except Exception as error:  # a user's class raises what it likes
        raise UnreadError(str(generated['type']), root_cause(error)) from error
    yield from ((dataset, index) for index in range(len(dataset)))


def _compare_moment(
    detector: Detector, rule: Any, dataset: Any, index: int, folder: Path
) -> tuple[str, list[PreprocessingDifference], list[str]]:
    family, infos = detector.family, folder / 'moment.pkl'
    expected, data = _read_sample(family, dataset, index, infos)
    try:
        (moment,) = family.data.moments(detector.cfg, rule, infos, getattr(dataset, 'data_root', None))
    except Mm2OnnxError as error:
        place = f'{getattr(dataset, "ann_file", type(dataset).__name__)}: info {index}'
        raise DataError(str(error).replace(f'{infos}: info 0', place)) from error
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(f'{type(error).__name__}: {error}') from error
    voxels = getattr(rule, 'voxels', rule)
    takes_points = voxels is not None
    picture_rtol = float(getattr(dataset, 'picture_rtol', 0.0))  # of a data set that normalises otherwise
    points_range = _points_range(detector.cfg)
    title, differences, absent = expected.name or f'moment {index}', [], []
    for name, value, got, rtol in _moment_values(expected, moment, picture_rtol):
        if name in family.data.unread_fields or (name == 'points' and not takes_points):
            continue
        if value is None and got is not None and name in OPTIONAL:
            absent.append(name)
            continue
        whole = got
        if name == 'points' and points_range is not None:  # x, y, z lowest, then highest
            ranges = np.array([points_range, voxels.point_cloud_range], np.float32)
            low, high = ranges[:, :3].min(axis=0), ranges[:, 3:].max(axis=0)
            value, got = (
                cloud[((cloud[:, :3] > low) & (cloud[:, :3] < high)).all(1)] for cloud in (value, got)
            )
        if texts := _differing_values(got, value, rtol):
            if name == 'points':
                texts = f'{texts[0]}{_first_step(dataset, index, whole)}', texts[1]
            differences.append(PreprocessingDifference(title, name, *texts))
    if texts := _differing_boxes(data):
        differences.append(PreprocessingDifference(title, 'box_type_3d', *texts))
    return title, differences, absent


def _differing_boxes(data: Mapping[str, Any]) -> tuple[str, str] | None:
    from mmcv.parallel import DataContainer
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    meta = data.get('img_metas', {})
    while isinstance(meta, DataContainer | list | tuple):  # of one sample, as `family.frame` has found
        meta = meta.data if isinstance(meta, DataContainer) else meta[0]
    kind = LiDARInstance3DBoxes
    if isinstance(meta, Mapping):
        kind = meta.get('box_type_3d', kind)
    is_derived = issubclass(kind, LiDARInstance3DBoxes)
    if kind is LiDARInstance3DBoxes or (kind.__name__ == LiDARInstance3DBoxes.__name__ and not is_derived):
        return None
    return LiDARInstance3DBoxes.__name__, f'{kind.__module__}.{kind.__qualname__}'


def _read_sample(
    family: SequenceFamily, dataset: Any, index: int, infos: Path
) -> tuple[Any, Mapping[str, Any]]:
    try:
        content = dict(infos=[dataset.data_infos[index]], metadata=dict(version=''))
        infos.write_bytes(pickle.dumps(content))  # before the sample is read, which may change it
        with loader_errors():
            (data,) = build_loader(dataset, [index], workers_per_gpu=0)
            expected = family.data.frame(data)
    except Mm2OnnxError:
        raise
    except Exception as error:  # a user's class raises what it likes
        raise UnreadError(type(dataset).__name__, error) from error
    return expected, data


def _first_step(dataset: Any, index: int, points: np.ndarray) -> str:
    compose = getattr(dataset.pipeline, 'args', [dataset.pipeline])[0]
    try:
        with watched(compose, _points_of_step) as seen:
            dataset[index]
    except Exception:  # a user's class raises what it likes
        return ''
    return first_after(seen, lambda cloud: _differing_values(points, cloud, 0.0) is None)


def _points_of_step(results: Mapping[str, Any]) -> np.ndarray | None:
    cloud = results.get('points')
    return cloud.tensor.numpy().copy() if hasattr(cloud, 'tensor') else None


def _points_range(cfg: Any) -> Sequence[float] | None:
    steps = list(test_pipeline(cfg))
    steps += [inner for step in steps for inner in step.get('transforms', ())]
    ranges = (step['point_cloud_range'] for step in steps if step.get('type') == 'PointsRangeFilter')
    return next(ranges, None)


def _moment_values(
    expected: Frame | Sweep, moment: Frame | Sweep, picture_rtol: float
) -> Iterator[tuple[str, Any, Any, float]]:
    for names, rtol in ((EXACT, 0.0), (NEAR, MATRIX_RTOL), (('can_bus',), RECORD_RTOL)):
        for name in names:
            if name in vars(expected):
                tolerance = picture_rtol if name == 'images' else rtol
                yield name, getattr(expected, name), getattr(moment, name), tolerance
    calibration: Mapping[str, np.ndarray] = getattr(expected, 'calibration', {})
    for name, matrix in calibration.items():
        yield name, matrix, moment.calibration.get(name), MATRIX_RTOL


def _differing_values(got: Any, expected: Any, rtol: float) -> tuple[str, str] | None:
    if not isinstance(expected, np.ndarray):
        return None if got == expected else (repr(got), repr(expected))
    if not isinstance(got, np.ndarray) or got.shape != expected.shape:
        shape = got.shape if isinstance(got, np.ndarray) else None
        return f'shape {shape}', f'shape {expected.shape}'
    gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if not gap.size:
        return None
    axes = (-2, -1) if expected.ndim > 2 else None
    scale = np.abs(expected).max(axis=axes, keepdims=True) if rtol else 0.0
    wrong = ~(gap <= rtol * scale)
    if not wrong.any():
        return None
    index = tuple(int(axis) for axis in np.unravel_index(np.argmax(np.where(wrong, gap, -1)), gap.shape))
    count = f'{wrong.sum()} of {wrong.size} values differ'
    return f'{got[index]:.7g} at {list(index)} ({count})', f'{expected[index]:.7g}'
