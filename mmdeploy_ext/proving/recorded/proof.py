"""Findings of a recorded reference."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.proving.inputs.samples import read_picture
from mmdeploy_ext.proving.inputs.voxel_sets import points_of
from mmdeploy_ext.proving.recorded import record
from mmdeploy_ext.proving.recorded.calls import Manifest, identity_of, readable
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.spec.verdict import NOTHING_COMPARED, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.recorded.calls import Recording
    from mmdeploy_ext.spec.verdict import Verdict


LEVELS, MEAN_LEVELS = 2.0, 0.1
"""Grey levels between two OpenCV builds' prepared images, at most and on average."""


def judge_recording(verdict: Verdict, detector: Detector, files: Sequence[Path]) -> None:
    """Add findings on the recorded model, its heads' outputs, and its inputs.

    `files`: the proof's images or sweeps, to compare the user's own test pipeline there.
    """
    recording: Recording = detector.recording
    manifest = recording.manifest
    others = identity_of(manifest, detector.model, detector.checkpoint_sha256)
    text = '; '.join(others[:3]) + (f'; and {len(others) - 3} more' if len(others) > 3 else '')
    verdict.findings.append(Finding('surroundings', 'recorded weights', not others, text))
    verdict.findings += _settings(manifest, detector)
    verdict.findings += _preparation(recording, detector, files)
    for name, row in recording.rows:
        verdict.findings.append(
            Finding('outputs', f'{name}: recorded {row.tensor}', row.passed, row.reason, dict(recorded=name))
        )
    verdict.add_failures(filter(None, [_gap(verdict, recording)]))
    answered = len(dict.fromkeys(recording.answered))
    inputs = 'input' if answered == 1 else 'inputs'
    rests_on = f'recorded on {answered} {inputs}'
    if recording.headless:
        rests_on += f', {len({*recording.headless})} with results only'
    verdict.subject['recorded'] = f'{recording.title} ({rests_on})'
    verdict.notes += recording.notes
    verdict.notes += [f'recorded: {line}' for line in manifest.said]
    if unsteady := [call.name for call in manifest.calls if not call.repeats]:
        verdict.notes.append(f'a second run there gave different values: {", ".join(unsteady)}')


def _gap(verdict: Verdict, recording: Recording) -> str:
    """Return why the verdict is not one on the recorded results, or ''."""
    again = 'run mm2onnx record again with the --images and --frames of this command'
    if recording.unreadable:
        return recording.unreadable[0]
    if not recording.answered:
        return f'no input of this proof was recorded: {again}'
    if left_out := sorted({*recording.left_out}):
        return (
            f'the recording answered {len(dict.fromkeys(recording.answered))} inputs; compared with PyTorch '
            f'here: {", ".join(left_out)}: {again}'
        )
    has_results = bool(verdict.with_figure('image') or verdict.series)
    there = verdict.summary()['reference'] + sum(sum(one['reference']) for one in verdict.series.values())
    if not (there if has_results else recording.rows):
        return f'{NOTHING_COMPARED}: the recording has no results'
    return ''


def _preparation(recording: Recording, detector: Detector, files: Sequence[Path]) -> Iterator[Finding]:
    """Compare images and sweeps of the user's test pipeline and of the file's rule."""
    by_content = {sha256_file(path): path for path in files}
    for entry in recording.manifest.own:
        subject, path = f'recorded preparation of {entry.name}', by_content.get(entry.sha256)
        if path is None:
            yield Finding('surroundings', subject, None, 'no file of --images has this content')
            continue
        compare = _compare_points if path.suffix == '.bin' else _compare_picture
        with readable(f'{recording.folder}: {entry.name}'):
            fed = record.restored(entry.fed, load_arrays(recording.folder / entry.file))
            compared = compare(_network_input(fed), path, detector)
        yield Finding('surroundings', subject, *compared)


def _compare_picture(there: np.ndarray, path: Path, detector: Detector) -> tuple[bool, str]:
    here = prepare_image(detector.rule, read_picture(path, detector.rule)).tensor[None]
    if there.shape != here.shape:
        return False, f'recorded {there.shape}, here {here.shape}'
    levels = np.abs(there - here) * np.float32(detector.rule.std)[:, None, None]
    text = f'{levels.max():.3g} grey levels apart at most, {levels.mean():.3g} on average'
    return bool(levels.max() <= LEVELS and levels.mean() <= MEAN_LEVELS), text


def _compare_points(there: np.ndarray, path: Path, detector: Detector) -> tuple[bool, str]:
    """Compare a single sweep's points, in order, in the model's range."""
    with tempfile.TemporaryDirectory() as folder:
        infos = Path(folder) / 'infos.pkl'
        infos.write_bytes(pickle.dumps([dict(lidar_path=str(path.resolve()), sweeps=[], timestamp=0)]))
        ((_, here),) = points_of(str(infos), detector.cfg, detector.rule, 1)
    low, high = np.float32(detector.rule.point_cloud_range).reshape(2, 3)
    there, here = (cloud[((cloud[:, :3] > low) & (cloud[:, :3] < high)).all(1)] for cloud in (there, here))
    if there.shape != here.shape:
        return False, f'recorded points {there.shape}, here {here.shape}'
    apart = np.abs(there - here).max(0, initial=0)
    columns = ', '.join(f'column {index} by {apart[index]:.3g}' for index in np.flatnonzero(apart))
    return not columns, columns and f'points differ: {columns} at most'


def _network_input(fed: Mapping[str, Any]) -> np.ndarray:
    value = fed.get('inputs', fed)
    if isinstance(value, dict):
        value = value['points' if 'points' in value else 'img']
    while isinstance(value, list | tuple):
        (value,) = value
    return value.numpy()


def _settings(manifest: Manifest, detector: Detector) -> list[Finding]:
    """Compare class names and, in the same generation of OpenMMLab, `test_cfg`."""
    findings = []
    if len(manifest.classes) == len(detector.classes):  # a checkpoint of RPN names classes without outputs
        same = [*manifest.classes] == [*map(str, detector.classes)]
        text = '' if same else f'recorded {manifest.classes[:5]}, here {[*detector.classes][:5]}'
        findings.append(Finding('surroundings', 'recorded classes', same, text))
    own = detector.cfg.model.get('test_cfg') or detector.cfg.get('test_cfg')
    if 'mmengine' not in manifest.versions and own and manifest.test_cfg:
        there, here = _plain(manifest.test_cfg), _plain(own)
        names = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
        text = ', '.join(f'{name}: recorded {there.get(name)}, here {here.get(name)}' for name in names[:3])
        findings.append(Finding('surroundings', 'recorded test_cfg', not names, text))
    return findings


def _plain(settings: Any, prefix: str = '') -> dict[str, str]:
    """Return dotted key -> text of each value."""
    if isinstance(settings, dict):
        rows: dict[str, str] = {}
        for key, value in settings.items():
            rows |= _plain(value, f'{prefix}{key}.')
        return rows
    if isinstance(settings, list | tuple):
        return {prefix.rstrip('.'): str([*settings])}
    return {prefix.rstrip('.'): str(settings)}
