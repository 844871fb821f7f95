"""Moments of a data set, prepared by the config's test pipeline and by the rule in a file.

The pipeline runs through the data set class, from files on disk; the rule as the runtime reads the same info
(`SequenceFamily.moments`). Both are independent of each other: what the proof feeds to both engines says
nothing of how it was prepared.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import DataError, Mm2OnnxError
from mmdeploy_ext.evaluate.evaluation import build_dataset
from mmdeploy_ext.evaluate.loop import DatasetFrames
from mmdeploy_ext.proving.results import PreprocessingDifference, PreprocessingResult

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.runtime.frames import Frame, Sweep

OF_DATASET = 2
"""Moments of the user's data set that are compared besides the generated ones."""
EXACT = ('images', 'points', 'timestamp_s', 'scene_token')
"""Values that the rules promise bit for bit."""
NEAR = ('lidar2img', 'intrinsics', 'ego_pose')
"""Matrices, which data sets keep in float32."""
RTOL = 2e-6
"""Of the largest value of a matrix: three products of float32."""


def compare_moments(
    deployment: Deployment, rule: Any, samples: Collection[Any], unit: str
) -> PreprocessingResult:
    """Compare generated moments, and two of the data set that a proof runs on, where it runs on one.

    Args:
        deployment: the config and checkpoint.
        rule: of the file, which the runtime prepares moments by.
        samples: of the proof.
        unit: what a sample is called.
    """
    titles: list[str] = []
    differences: list[PreprocessingDifference] = []
    error = note = ''
    try:
        with tempfile.TemporaryDirectory() as folder:
            generated = deployment.family.generated_dataset(Path(folder), deployment.cfg, deployment.rule)
            if generated['pipeline'] != test_pipeline(deployment.cfg):
                note = 'without test-time augmentation'
            for dataset, index in _datasets(deployment, generated, samples):
                title, found = _compare(deployment, rule, dataset, index, Path(folder))
                titles.append(title)
                differences += found
    except Mm2OnnxError as raised:
        error = one_line(raised)[:300]
    return PreprocessingResult(tuple(titles), unit, tuple(differences), note, error)


def _datasets(
    deployment: Deployment, generated: Mapping[str, Any], samples: Collection[Any]
) -> Iterator[tuple[Any, int]]:
    """Yield data sets and indices of samples: all that are generated, and some of the proof's own."""
    cfg = copy.deepcopy(deployment.cfg)
    classes = generated.get('classes') or list(deployment.classes)
    cfg.data = dict(cfg.get('data') or {}, test=dict(generated, classes=classes))
    dataset = build_dataset(cfg)
    yield from ((dataset, index) for index in range(len(dataset)))
    if isinstance(samples, DatasetFrames) and hasattr(samples.dataset, 'data_infos'):
        chosen = samples.indices
        places = {0, len(chosen) // 2} if len(chosen) > OF_DATASET else range(len(chosen))
        yield from ((samples.dataset, chosen[place]) for place in sorted(places))


def _compare(
    deployment: Deployment, rule: Any, dataset: Any, index: int, folder: Path
) -> tuple[str, list[PreprocessingDifference]]:
    """Return the name of a moment, and what differs in it."""
    family, infos = deployment.family, folder / 'moment.pkl'
    infos.write_bytes(pickle.dumps(dict(infos=[dataset.data_infos[index]], metadata=dict(version=''))))
    try:
        (expected,) = DatasetFrames(family, dataset, [index])
        (moment,) = family.moments(deployment.cfg, rule, infos, getattr(dataset, 'data_root', None))
    except Mm2OnnxError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(f'{type(error).__name__}: {error}') from error
    unused = ('points',) if getattr(rule, 'voxels', rule) is None else ()
    rounding = float(getattr(dataset, 'picture_rtol', 0.0))  # of a data set that normalises otherwise
    limits = _points_range(deployment.cfg)
    title = expected.name or f'moment {index}'
    return title, list(_differences(title, expected, moment, limits, unused, rounding))


def _points_range(cfg: Any) -> Sequence[float] | None:
    """Return the range that a test pipeline cuts points to, which the voxels of the model do, too."""
    steps = list(test_pipeline(cfg))
    steps += [inner for step in steps for inner in step.get('transforms', ())]
    found = [step['point_cloud_range'] for step in steps if step.get('type') == 'PointsRangeFilter']
    return found[0] if found else None


def _differences(
    title: str,
    expected: Frame | Sweep,
    moment: Frame | Sweep,
    limits: Sequence[float] | None,
    unused: Collection[str],
    picture_rtol: float = 0.0,
) -> Iterator[PreprocessingDifference]:
    """Yield what two moments differ in, but for values that the model does not use."""
    for name, wanted, got, rtol in _values(expected, moment):
        if name in unused:
            continue
        if name == 'points' and limits is not None:
            wanted, got = (_in_range(points, limits) for points in (wanted, got))
        words = _unlike(got, wanted, picture_rtol if name == 'images' else rtol)
        if words:
            yield PreprocessingDifference(title, name, *words)


def _values(expected: Any, moment: Any) -> Iterator[tuple[str, Any, Any, float]]:
    """Yield name, value by the pipeline, value by the rule and relative tolerance of all that is prepared."""
    for names, rtol in ((EXACT, 0.0), (NEAR, RTOL)):
        for name in names:
            if name in vars(expected):
                yield name, getattr(expected, name), getattr(moment, name), rtol
    known: Mapping[str, np.ndarray] = getattr(expected, 'calibration', {})
    for name, wanted in known.items():
        yield name, wanted, moment.calibration.get(name), RTOL


def _in_range(points: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    return points[((points[:, :3] > low) & (points[:, :3] < high)).all(1)]


def _unlike(got: Any, expected: Any, rtol: float) -> tuple[str, str] | None:
    """Return in words what was got and what was expected, None where they are equal."""
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
    place = tuple(int(axis) for axis in np.unravel_index(np.argmax(np.where(wrong, gap, -1)), gap.shape))
    count = f'{wrong.sum()} of {wrong.size} values differ'
    return f'{got[place]:.7g} at {list(place)} ({count})', f'{expected[place]:.7g}'
