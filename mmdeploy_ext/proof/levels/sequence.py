"""Levels 1 to 4 of the ladder for models with a memory: the files of one export against the PyTorch model."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.cli import stderr
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.proof import fresh, half
from mmdeploy_ext.proof.enough import too_few
from mmdeploy_ext.proof.levels.graph_level import judge
from mmdeploy_ext.proof.levels.sequence_pair import run_modes, run_pair
from mmdeploy_ext.proof.levels.sequence_run import Bars
from mmdeploy_ext.proof.levels.sequence_shift import NearOrigin
from mmdeploy_ext.proof.levels.sequence_ties import MemoryFacts
from mmdeploy_ext.proof.provenance import hash_checks, hashes_of, override_notes, provenance
from mmdeploy_ext.proof.subject import data_hashes
from mmdeploy_ext.proof.verdict import Case, DetectionRow, FramePair, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.proof.verdict import SequenceRow
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState

__all__ = ['FULL_DRIVE', 'HALF', 'Bars', 'prove_sequence', 'run_modes', 'run_pair']

MAX_PICTURES = 4
FRAMES = 'use a drive with objects that this model finds, a longer one (--frames), and a trained checkpoint'
FULL_DRIVE = Bars()
"""A hundred frames with a scene change: what a claim about drift is made of."""
SHORT_DRIVE = dataclasses.replace(FULL_DRIVE, frames=2, resets=0)
"""What `--verify` asks of whatever frames it is given; the verdict says how many there were."""


def low_drive(bars: half.HalfBars) -> Bars:
    """Return what a drive in half precision or INT8 has to keep: cosines, and results alike to the eye."""
    return dataclasses.replace(
        SHORT_DRIVE,
        cosine=bars.cosine,
        distance_m=bars.distance_m,
        score=bars.score,
        match_rate=bars.match_rate,
        near_counts=True,
        tie=2e-3,
    )


HALF = low_drive(half.BARS)


def prove_sequence(
    deployment: Deployment,
    paths: Sequence[str],
    frames: Iterable[Frame],
    engine: Mapping[str, Any],
    bars: Bars | None = None,
    edited: bool = False,
) -> tuple[Verdict, list[FramePair]]:
    """Prove the files of one export.

    Args:
        deployment: the config and checkpoint that they claim to be.
        paths: of the files.
        frames: the drive; read once. Scenes far out on the map are moved to its origin, see `NearOrigin`.
        engine: options of `build_backend`.
        bars: what passes; None takes `default_bars`.
        edited: the files were edited on purpose: inputs alone decide about their graphs.

    Returns:
        The verdict, and frames with both engines' detections for the report.

    Raises:
        ModelFileError: a file is not there, not ours, or of another model family.
    """
    verdict, metadata = check_files(deployment, paths, engine, edited)
    spec, facts = output_spec(metadata), memory_facts(metadata)
    bars = bars or default_bars(metadata)
    engine = shown_engine(metadata, engine)
    family, count = deployment.family, length_of(frames)
    album, drive = _Album(deployment.rule, count), NearOrigin(frames)
    with contextlib.ExitStack() as stack:
        runners = {mode: closed_with(stack, family.runner(paths, engine)) for mode in ('teacher', 'free')}
        steppers = [Timed(stepper) for stepper in (family.reference(deployment.model), *runners.values())]
        rows = run_modes(
            steppers[0],
            dict(zip(runners, steppers[1:], strict=True)),
            with_progress(drive, count),
            spec,
            facts=facts,
            bars=bars,
            watch=album.look,
        )
    verdict.sequence = list(rows.values())
    verdict.cases = [_case(rows['teacher'], album.shape)]
    if steppers[0].seconds and steppers[2].seconds:
        verdict.timing_ms = {
            'PyTorch (frame)': steppers[0].median_ms(),
            f'{verdict.subject["engine"]} (frame)': steppers[2].median_ms(),
        }
    if all(row.passed for row in verdict.sequence):
        verdict.reasons += too_few(rows['teacher'].series['matched'], 'frame', FRAMES)
    verdict.notes += _notes(rows['free'], bars, bool(engine.get('round_fp16')))
    verdict.notes += override_notes(deployment, metadata[-1], 'the files were')
    if drive.moved_m:
        verdict.notes.append(
            f'scenes up to {drive.moved_m / 1e3:.1f} km out were moved to the origin of the map: no model '
            f"knows where it is, and PyTorch's memory (float32, global) is coarser with the distance"
        )
    return verdict, album.pairs


def shown_engine(metadata: Sequence[Metadata], engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `build_backend` that show what float16 does to these files."""
    kind = str(engine.get('engine', 'OnnxRuntimeBackend'))
    return half.proof_engine(metadata[-1], kind, engine)


def output_spec(metadata: Sequence[Metadata]) -> GraphSpec:
    """Return the outputs of all files of an export together, and which of them are state."""
    specs = [entry.spec for entry in metadata]
    outputs = {tensor.name: tensor for spec in specs for tensor in spec.outputs}
    state = tuple(pair for spec in specs for pair in spec.state)
    return GraphSpec(' + '.join(spec.name for spec in specs), (), tuple(outputs.values()), state)


def precision_of_all(metadata: Sequence[Metadata]) -> str:
    """Return what an export is judged as: one file in less than float32 decides for all."""
    return next((found for entry in metadata if (found := half.precision_of(entry)) != 'fp32'), 'fp32')


def default_bars(metadata: Sequence[Metadata]) -> Bars:
    """Return `SHORT_DRIVE`, or for files in less `low_drive` with the tolerances that their spec has."""
    if (precision := precision_of_all(metadata)) == 'fp32':
        return SHORT_DRIVE
    known = {tensor.name: tensor for tensor in output_spec(metadata).outputs}
    drive = low_drive(half.bars_of(precision) or half.BARS)
    state = {
        key: known[f'post_memory_{key}'].column_groups[0] if f'post_memory_{key}' in known else group
        for key, group in drive.state.items()
    }
    return dataclasses.replace(drive, state=state)


def memory_facts(metadata: Sequence[Metadata]) -> MemoryFacts | None:
    """Return how queries come to the memory; None where no file says it (ties are then errors)."""
    for entry in metadata:
        topk = entry.postprocess.get('topk_proposals')
        if topk:
            return MemoryFacts(int(topk), int(entry.postprocess.get('num_propagated', topk)))
    return None


def open_graph(deployment: Deployment, path: str) -> tuple[Any, Metadata]:
    """Read one file and what it says about itself.

    Raises:
        ModelFileError: not there, not ours, or of another model family.
    """
    from mmdeploy_ext.proof.ladder import open_file

    model, metadata = open_file(path)
    if metadata.family != deployment.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {metadata.family!r}; {deployment.config} is '
            f'{deployment.family.name!r}'
        )
    return model, metadata


def check_files(
    deployment: Deployment, paths: Sequence[str], engine: Mapping[str, Any], edited: bool = False
) -> tuple[Verdict, list[Metadata]]:
    """Return level 1 of every file as the beginning of a verdict, and what the files say of themselves.

    Args:
        deployment: the config and checkpoint that they claim to be.
        paths: of the files.
        engine: options of `build_backend`, for the subject.
        edited: inputs alone decide about their graphs.

    Raises:
        ModelFileError: a file is not there, not ours, or of another model family.
    """
    from mmdeploy_ext.proof.levels.structure import check_structure

    files = [open_graph(deployment, path) for path in paths]
    metadata = [entry for _, entry in files]
    verdict = Verdict(subject=subject_of(deployment, paths, metadata, engine))
    options = deployment.family.written(metadata[0].options, paths[0])
    for path, entry in zip(paths, metadata, strict=True):
        if entry.options != metadata[0].options:
            raise ModelFileError(
                f'{path}: is of another export than {paths[0]} (options differ); export again'
            )
    with fresh.options_of(paths[0]):
        options.check()
    asked = fresh.exported_with(options, metadata[0])
    graphs = {graph.name: graph for graph in deployment.family.graphs(deployment.model, asked)}
    for model, entry in files:
        graph = graphs.get(entry.form)
        reference = fresh.of_graph(deployment, options, entry, graph)
        found = judge(model, entry, reference, entry.form, edited)
        verdict.graphs.append(found)
        hashes, notes = hash_checks(deployment, hashes_of(entry), found.equal)
        contract = graph.spec if graph else None
        checks = [*check_structure(model, entry), *hashes]
        checks += provenance(deployment, entry, deployment.rule, contract)
        verdict.structure += [
            dataclasses.replace(check, name=f'{entry.form}: {check.name}') for check in checks
        ]
        verdict.notes += [note for note in notes if note not in verdict.notes]
    return verdict, metadata


def subject_of(
    deployment: Deployment, paths: Sequence[str], metadata: Sequence[Metadata], engine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is proven: files, options, config, checkpoint, hashes and versions."""
    from mmdeploy_ext.engines import title_of
    from mmdeploy_ext.exporting import export

    kind, last = str(engine.get('engine', 'OnnxRuntimeBackend')), metadata[-1]
    return dict(
        file=str(paths[0] if len(paths) == 1 else Path(paths[-1]).parent),
        files={Path(path).name: sha256_file(path)[:16] for path in paths},
        **data_hashes(paths),
        family=last.family,
        task=deployment.family.task,
        contract=last.options.get('contract', ''),
        options=last.options,
        opset=last.options['opset'],
        exporter=last.options['exporter'],
        precision=precision_of_all(metadata),
        engine=title_of(kind),
        config=deployment.config,
        checkpoint=deployment.checkpoint,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        exported_with=last.versions,
        proven_with=export.versions(),
        python=platform.python_version(),
    )


def _case(row: SequenceRow, shape: str) -> Case:
    """Return levels 2 and 3: the worst of every tensor and all detections, each frame judged alone."""
    reason = ''
    if row.missing or row.extra or row.outside:
        reason = f'{row.missing} missing, {row.extra} extra, {row.outside} outside the bars'
    passed = row.match_rate is None or row.match_rate >= row.match_bar
    detections = DetectionRow(
        f'all {row.frames} frames',
        row.reference,
        row.matched,
        row.missing,
        row.extra,
        1.0,
        row.worst_score,
        passed,
        '' if passed else reason,
        row.outside,
        row.worst_distance,
    )
    return Case(f'{row.title}, {row.frames} frames', shape, False, row.tensors, (detections,))


def _notes(row: SequenceRow, bars: Bars, rounded: bool) -> list[str]:
    notes = []
    if bars.frames < FULL_DRIVE.frames and row.frames < FULL_DRIVE.frames:
        notes.append(f'{row.frames} frames ran; a claim about drift needs {FULL_DRIVE.frames} (--frames)')
    if not row.resets:
        notes.append('no scene changed in these frames, so that the reset was not shown')
    if bars.cosine is not None:
        notes.append(
            f'judged by bars that are not those of float32: cosine at least {bars.cosine}, '
            f'{100 * bars.match_rate:g} % of the results matched within {bars.distance_m} m and score '
            f'{bars.score}; pairs that are only near count as matched'
        )
        if rounded:
            notes.append(half.ROUNDED)
    return notes


def closed_with(stack: contextlib.ExitStack, runner: Stepper) -> Stepper:
    """Return a runner whose sessions, if it has any, are closed with the stack."""
    owner = getattr(runner, 'runtime', runner)
    if hasattr(owner, 'close'):
        stack.callback(owner.close)
    return runner


def length_of(frames: Iterable[Frame]) -> int | None:
    """Return how many frames there are, where that is known."""
    return len(frames) if hasattr(frames, '__len__') else None


def with_progress(frames: Iterable[Frame], count: int | None) -> Iterator[Frame]:
    """Yield the frames with a bar on a terminal."""
    console = stderr()
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(frames, total=count, description='proving')


class Timed:
    """A stepper that counts the seconds of its steps."""

    def __init__(self, stepper: Stepper) -> None:
        """Keep the stepper."""
        self.stepper = stepper
        self.seconds: list[float] = []

    @property
    def state(self) -> StreamState | None:
        """See `Stepper.state`."""
        return self.stepper.state

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.stepper.state = state

    def reset(self) -> None:
        """Empty the memory."""
        self.stepper.reset()

    def step(self, frame: Frame) -> StepResult:
        """Run one frame."""
        start = time.perf_counter()
        result = self.stepper.step(frame)
        self.seconds.append(time.perf_counter() - start)
        return result

    def median_ms(self) -> float:
        """Return the median without the first frame, which computes what later ones keep."""
        return round(statistics.median(self.seconds[1:] or self.seconds) * 1e3, 2)


class _Album:
    """Keeps a few frames of the free run, as the network saw them, spread over the drive."""

    def __init__(self, rule: Any, count: int | None) -> None:
        self.rule, self.pairs, self.shape = rule, [], ''
        spread = range(1, 2 * MAX_PICTURES, 2)
        self.chosen = {4**index for index in range(MAX_PICTURES)}
        if count:
            self.chosen = {min(part * count // (2 * MAX_PICTURES), count - 1) for part in spread}

    def look(self, index: int, frame: Frame, expected: StepResult, results: Mapping[str, StepResult]) -> None:
        """Keep a frame if it is one of the chosen."""
        self.shape = self.shape or 'x'.join(map(str, frame.images.shape))
        if index in self.chosen and 'free' in results:
            pictures = pictures_bgr(frame.images, self.rule)
            found = results['free'].detections
            title = f'{frame.name or f"frame {index}"}, free-running, frame {index + 1} of the drive'
            self.pairs.append(FramePair(title, pictures, frame.lidar2img, expected.detections, found))


def pictures_bgr(images: np.ndarray, rule: Any) -> np.ndarray:
    """Undo the normalisation of (N, 3, H, W) float32; returns (N, H, W, 3) uint8 BGR."""
    values = images.transpose(0, 2, 3, 1) * np.float32(rule.std) + np.float32(rule.mean)
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., ::-1] if rule.to_rgb else pixels)
