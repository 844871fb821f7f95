"""The proof of files of sweeps, `prove_sweeps`, and of files with a memory, `prove_frames`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import LoadError, ModelFileError
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.engines import title_of
from mmdeploy_ext.exporting.precision_plan import before_plan
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.proving import file_checks, loop
from mmdeploy_ext.proving.drive_run import (
    FULL_DRIVE,
    MAX_DRAWN,
    NOTHING_FOUND,
    SHORT_DRIVE,
    DriveLength,
    Drives,
)
from mmdeploy_ext.proving.metrics import compare_metrics
from mmdeploy_ext.proving.not_shown import Watch, count_voxels
from mmdeploy_ext.proving.preprocessing import compare_prepared, compare_voxels
from mmdeploy_ext.proving.proof import (
    ROUNDED_FP16,
    check,
    compare_samples,
    conclude,
    contents_of,
    engine_class,
    engine_options,
    judge_results,
    not_loaded,
    open_file,
)
from mmdeploy_ext.proving.provenance import companion_checks
from mmdeploy_ext.proving.recorded.calls import RecordedStepper
from mmdeploy_ext.proving.subject import PLAIN, Sample, Started, Step, Subject, Unread
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.runtime.tasks import bbox3d
from mmdeploy_ext.spec.matching import too_few, total_reasons
from mmdeploy_ext.spec.metadata import least_precision, read_metadata
from mmdeploy_ext.spec.results import FLOAT32, Bars, Case, DetectionRow, bars_of, tensor_text
from mmdeploy_ext.spec.tensors import GraphSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from mmdeploy_ext.families.contracts import Contract
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs import ChosenSamples
    from mmdeploy_ext.proving.proof import ExportedFile, Proof
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState, Sweep
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import Check, GraphResult, MetricRow, PreprocessingResult, SequenceRow
    from mmdeploy_ext.spec.tensors import TensorSpec
    from mmdeploy_ext.spec.verdict import Verdict


ADVICE = 'use sweeps with objects that this model finds, more sweeps (--frames) and a trained checkpoint'
"""Advice for too few matched results of sweeps."""
MAX_EXCESS = 0.3
"""Allowed excess of the best score over PyTorch's on an empty sweep."""
NOT_PUT_IN = (
    "the files' outputs differ from the inputs of your head, which did not run on them: the end-to-end "
    'boxes decide'
)


@dataclasses.dataclass
class Sides:
    """PyTorch and the files of one export, sample by sample.

    Attributes:
        metadata: of the last file.
        reference: PyTorch's side.
        runner: the files on their engine.
        spec: outputs and state of all files.
        bars: of the files' lowest precision.
    """

    detector: Detector
    metadata: Metadata
    reference: Stepper
    runner: Stepper
    spec: GraphSpec
    bars: Bars


def prove(
    detector: Detector,
    paths: Sequence[str],
    samples: Collection[Any],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    """Prove the files of one export on a drive, or on sweeps."""
    proves = prove_drive if detector.family.memory else prove_sweeps
    return proves(detector, paths, samples, engine, claims)


def prove_sweeps(
    detector: Detector,
    paths: Sequence[str],
    sweeps: Collection[Sweep],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    """Prove files on sweeps, or on `FusedFrame`s with prepared images."""
    proof = check_frames(detector, paths, sweeps, engine, claims, 'sweep')
    results, verdict = proof.results, proof.verdict
    with contextlib.ExitStack() as stack:
        try:
            sides = open_sides(detector, proof.files, proof.options, proof.engine, stack)
        except LoadError as error:
            return not_loaded(proof, error)
        subject = Sweeps(sides, RecordedStepper(detector, sides.reference), sweeps)
        clock = compare_samples(proof, subject)
        judge_results(proof)
        if not results.reasons:
            results.reasons += total_reasons(results.cases, verdict.bars, 'sweep', 'sweep', ADVICE)
        proof.add_notes(dict.fromkeys(note for case in results.cases for note in case.notes))
        if subject.first is not None:
            results.cases += unusual_cases(sides, subject.first)
    subject.pairs = subject.pairs[:MAX_DRAWN]
    return conclude(proof, subject, subject.settings, '--frames', clock, 'sweep')


def check_frames(
    detector: Detector,
    paths: Sequence[str],
    samples: Collection[Any],
    engine: Mapping[str, Any],
    claims: Claims,
    unit: str = 'frame',
) -> Proof:
    """Read files of frames or sweeps, and do level 1."""
    files, options = read_files(detector, paths)
    kind, family = engine_class(engine), detector.family
    facts = dict(
        files={Path(path).name: sha256_onnx(path)[:16] for path in paths},
        contract=files[-1].options.get('contract', ''),
        precision=least_precision([file.metadata for file in files]),
        engine=title_of(kind),
        **files[-1].facts,
    )
    contract = contract_of(family, options)
    graphs = contract.graphs(detector.model, options)
    specs = {graph.name: graph.spec for graph in graphs}
    export_graph = file_checks.of_graphs(detector, before_plan(options, files[-1].edits))
    last, rule = files[-1].path, files[-1].metadata.preprocess

    def level_1(file: ExportedFile) -> tuple[list[Check], list[str], Callable[[], GraphResult]]:
        checks, notes = contents_of(detector, claims, file, detector.rule, specs.get(file.name))
        if file.path == last:
            checks += companion_checks(Path(last).parent, contract.companions(detector.model))
        export = functools.partial(export_graph, file.name)
        given = file.model, export, file.name, file.edits
        return checks, notes, lambda: file_checks.compare_with_fresh_export(*given)

    return check(
        detector,
        files,
        options,
        engine_options(files, kind, engine),
        claims,
        facts,
        level_1=level_1,
        prepared=lambda: compare_preparation(detector, rule, samples, unit),
    )


def read_files(detector: Detector, paths: Sequence[str]) -> tuple[list[ExportedFile], Options]:
    """Read the files of one export, and their common options."""
    files = []
    for path in paths:
        file = open_file(path)
        file.metadata.require(path, detector.family.name)
        files.append(dataclasses.replace(file, name=file.metadata.form))
    first = files[0]
    for file in files:
        if file.options != first.options:
            raise ModelFileError(
                f'{file.path}: was exported with other options than {first.path}; export both again'
            )
    options = exported_options(detector.family, first.options, first.path)
    with file_checks.option_errors(first.path):
        options.check()
    return files, options


def compare_preparation(
    detector: Detector, rule: Any, samples: Collection[Any], unit: str
) -> PreprocessingResult:
    result = compare_prepared(detector, rule, samples, unit)
    layer = detector.family.reference(detector.model).voxel_layer()
    if layer is None or result.error:
        return result
    voxels = compare_voxels(*layer, getattr(rule, 'voxels', rule).to_json())
    differences = *result.differences, *voxels.differences
    return dataclasses.replace(result, differences=differences, error=voxels.error)


def open_sides(
    detector: Detector,
    files: Sequence[ExportedFile],
    options: Options,
    engine: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> Sides:
    model, contract = detector.model, contract_of(detector.family, options)
    names = {file.name for file in files}
    if absent := [f'{one.name}.onnx' for one in contract.graphs(model, options) if one.name not in names]:
        raise ModelFileError(
            f'{Path(files[0].path).parent}: has no {", ".join(absent)}; all files of an export are '
            'needed: export again'
        )
    metadata = [file.metadata for file in files]
    return Sides(
        detector,
        metadata[-1],
        contract.reference(model),
        open_runner(contract, files, engine, stack),
        output_spec(metadata, contract.runner_outputs(model, options)),
        bars_of(least_precision(metadata)),
    )


def open_runner(
    contract: Contract, files: Sequence[ExportedFile], engine: Mapping[str, Any], stack: contextlib.ExitStack
) -> Stepper:
    """Return a stepper of the files; the stack closes its sessions."""
    runner = contract.runner([file.path for file in files], engine)
    owner = getattr(runner, 'runtime', runner)
    if hasattr(owner, 'close'):
        stack.callback(owner.close)
    return runner


def output_spec(metadata: Sequence[Metadata], between: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return one spec for outputs and state of all files; `between`: outputs of the runner."""
    specs = [entry.spec for entry in metadata]
    outputs = {tensor.name: tensor for spec in specs for tensor in spec.outputs}
    outputs |= {tensor.name: tensor for tensor in between}
    state = tuple(pair for spec in specs for pair in spec.state)
    return GraphSpec(' + '.join(spec.name for spec in specs), (), tuple(outputs.values()), state)


def limits(metadata: Metadata) -> dict[str, Any]:
    voxels = getattr(metadata.preprocess, 'voxels', metadata.preprocess)
    return {**metadata.postprocess.to_json(), 'max_voxels': getattr(voxels, 'max_voxels', -1)}


def counts_of(metadata: Metadata, results: int, sweep: Sweep | None = None) -> dict[str, int]:
    bounds, rule = limits(metadata), metadata.preprocess
    counts = {'post_max_size' if 'post_max_size' in bounds else 'max_num': results}
    if sweep is not None and bounds['max_voxels'] > 0:
        counts['max_voxels'] = count_voxels(sweep.points, getattr(rule, 'voxels', rule))
    return counts


class Sweeps(Subject):
    """The user's test path over sweeps, and files on their engine; `plain`: a sweep with nothing in it."""

    def __init__(
        self, sides: Sides, reference: Any, sweeps: Collection[Sweep], plain: Sweep | None = None
    ) -> None:
        self.sides, self.reference, self.given, self.plain = sides, reference, sweeps, plain
        self.spec, self.bars, self.settings = sides.spec, sides.bars, limits(sides.metadata)
        self.task, self.module = sides.detector.family.task, sides.detector.model
        self.unread, self.watch, self.pairs = Unread(sides.spec, sides.runner), Watch(), []
        self.first: Sweep | None = None

    def sample(self, entry: Sweep, index: int, mode: str) -> Sample:
        self.first = self.first or entry
        return Sample(entry.name, entry, 'x'.join(map(str, entry.points.shape)), titles=['boxes'])

    def want(self, sample: Sample, state: Any) -> Step:
        with self.watch:
            step = self.reference.step(sample.data)
        counts = counts_of(self.sides.metadata, len(step.detections), sample.data)
        return Step(step.outputs, [step.detections], counts=counts)

    def got(self, sample: Sample, state: Any) -> Step:
        step = self.sides.runner.step(sample.data)
        return Step(step.outputs, [step.detections])

    def tensors(self, sample: Sample, state: Any, got: Step) -> Mapping[str, Any]:
        return self.sides.reference.step(sample.data).outputs

    def results(self, sample: Sample, state: Any, seed: int | None = PLAIN) -> list[Any]:
        return [self.sides.reference.step(sample.data).detections]

    def on(self, sample: Sample, got: Step) -> Started | None:
        """Decode the files' outputs by the user's head, if they are what it takes."""
        boxes_of = getattr(self.sides.reference, 'boxes_of', None)
        if boxes_of is None or sample.data is self.plain:
            return None
        if not {*getattr(self.sides.reference, 'output_names', ())} <= got.tensors.keys():
            return Started(notes=[NOT_PUT_IN])
        return Started(lambda: [boxes_of(got.tensors)])

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        if isinstance(got, Exception):
            return case
        self.unread.look(got.tensors, getattr(self.sides.runner, 'boxes_of', None))
        sides = want.results[0], got.results[0]
        if sample.data is self.plain and len(sides[0].above(bbox3d.SCORE_THR)):
            case = dataclasses.replace(case, detections=(best_scores_row(*sides),))
        title = f'{sample.name or "sweep"}, {len(sample.data.points)} points'
        self.pairs.append(bbox3d.pair_of(sample.data, self.sides.detector.rule, title, *sides))
        return case


def unusual_cases(sides: Sides, first: Sweep) -> list[Case]:
    """Compare special sweeps, and a plain one: tensors, and results if PyTorch finds nothing."""
    reference, rule = sides.reference, sides.detector.rule
    plain = reference.plain_sample(rule, first)
    subject = Sweeps(sides, reference, [*reference.special_samples(rule, first), plain], plain)
    subject.again = -1
    return loop.compare(subject)[0]


def best_scores_row(expected: Detections3D, detections: Detections3D) -> DetectionRow:
    excess = float(detections.scores.max(initial=0.0)) - float(expected.scores.max())
    reason = '' if excess <= MAX_EXCESS else f'the best score is {excess:.3g} higher than in PyTorch'
    return DetectionRow('best score', 0, 0, 0, 0, 1.0, max(excess, 0.0), not reason, reason)


# Files with a memory: one pass over a drive in two modes.


DRIVE_ADVICE = (
    'use a drive with objects that this model finds, more frames (--frames) and a trained checkpoint'
)
"""Advice for too few matched results of a drive."""
SPECIAL = 'frames with one change of the rig, and frames of one colour'
"""Title of the case of `special_frames`."""
FAR = dict(offset_m=(7e5, 4e6, 500.0), turn_rad=0.7)
"""A place as in UTM, with float32 steps of 0.25 m, and another heading."""
FRAME_S = 0.5
"""Seconds between frames without times, as between key frames of nuScenes."""
NEAR_M = 100.0
"""Metres: scenes that start nearer to the origin stay."""


def prove_drive(
    detector: Detector,
    paths: Sequence[str],
    frames: Collection[Frame],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    length = claims.settings.get('length', SHORT_DRIVE)
    proof = check_frames(detector, paths, frames, engine, claims)
    family, results, verdict = detector.family, proof.results, proof.verdict
    contract = contract_of(family, proof.options)
    with contextlib.ExitStack() as stack:
        try:
            sides = open_sides(detector, proof.files, proof.options, proof.engine, stack)
            teacher = open_runner(contract, proof.files, proof.engine, stack)
        except LoadError as error:
            return not_loaded(proof, error)
        memory = family.memory_spec(sides.metadata.postprocess)
        if not verdict.bars.is_float32:
            memory = memory.judged_by(sides.spec)
        module = sides.reference.model if verdict.bars.is_float32 else None
        settings = dict(spec=sides.spec, memory=memory, task=family.task, module=module, bars=verdict.bars)
        settings |= dict(settings=limits(sides.metadata))
        frames = NearOrigin(frames, with_moments=not memory.tensors)
        drive = Drives(
            RecordedStepper(detector, sides.reference),
            dict(teacher=teacher, free=sides.runner),
            frames=frames,
            length=length,
            rule=detector.rule,
            watch=Watch(),
            **settings,
        )
        drive.own = sides.reference
        clock = compare_samples(proof, drive)
        results.sequence = list(drive.finish().values())
        first = drive.first
        shape = '' if first is None else 'x'.join(map(str, first.images.shape))
        case = _case(results.sequence[0], shape)
        counts = counts_of(sides.metadata, drive.most_results)
        results.cases.append(dataclasses.replace(case, counts=counts))
        if all(row.passed for row in results.sequence):  # failed rows have their own reasons
            matched = results.sequence[0].series['matched']
            both = [sum(counts) for counts in zip(matched, drive.runs['teacher'].substituted, strict=False)]
            results.reasons += too_few(both or matched, 'frame', DRIVE_ADVICE)
        verdict.notes += notes_on_drive(proof, drive)
        verdict.notes += frames.notes

        if verdict.bars.is_float32 and first is not None:
            runner = Shifted(sides.runner, **FAR) if contract.ignores_places else sides.runner
            samples = sides.reference.special_samples(detector.rule, first)
            drives_of = functools.partial(Drives, sides.reference, **settings)
            cases, reasons = special_frames(samples, runner, drives_of, shape)
            results.cases += cases
            results.reasons += reasons
    verdict.unreached += [f'{title}: in no frame' for title, count in drive.made.items() if not count]
    drive.pairs = drive.pairs[:MAX_DRAWN]
    return conclude(proof, drive, drive.settings, '--frames', clock, 'frame')


def metrics(
    detector: Detector,
    paths: Sequence[str],
    names: Sequence[str],
    engine: Mapping[str, Any],
    half: int | None = None,
) -> list[MetricRow]:
    """Return metrics of the data set, or of a `half` of it, by both engines."""
    from mmdeploy_ext.families.evaluate.detector import FrameDetector

    family, metadata = detector.family, [read_metadata(path) for path in paths]
    contract = contract_of(family, metadata[-1].options)
    networks = (family.reference(detector.model), contract.runner(paths, engine))
    detectors = (FrameDetector(network, family) for network in networks)
    return compare_metrics(detector.cfg, *detectors, names, least_precision(metadata), half)


def ask(detector: Detector, paths: Sequence[str], chosen: ChosenSamples) -> None:
    """Run PyTorch on the proof's samples, for `detector.recording`."""
    (files, options), family = read_files(detector, paths), detector.family
    metadata = [file.metadata for file in files]
    reference = RecordedStepper(detector, contract_of(family, options).reference(detector.model))
    if family.memory:
        memory = family.memory_spec(metadata[-1].postprocess)
        frames = NearOrigin(chosen.samples, with_moments=not memory.tensors)
        loop.ask(Drives(reference, dict(teacher=None), output_spec(metadata), memory=memory, frames=frames))
    else:
        sides = Sides(detector, metadata[-1], reference, None, output_spec(metadata), FLOAT32)
        loop.ask(Sweeps(sides, reference, chosen.samples))


def special_frames(
    frames: Iterable[Frame],
    runner: Stepper,
    drives_of: Callable[..., Drives],
    shape: str,
) -> tuple[list[Case], list[str]]:
    """Judge frames with one part of the rig changed, or plain images."""
    drives = drives_of(dict(teacher=runner), length=DriveLength(1, 0), frames=[*frames])
    _, again, _ = loop.compare(drives)
    if not drives.given:
        return [], []
    row = drives.finish()['teacher']
    case = dataclasses.replace(_case(row, shape), name=SPECIAL)
    reasons = [*row.reasons, *again]
    return [case], [f'{SPECIAL}: {reason}' for reason in reasons if reason != NOTHING_FOUND]


def notes_on_drive(proof: Proof, drive: Drives) -> list[str]:
    row, notes, bars = proof.results.sequence[-1], [*dict.fromkeys(drive.notes)], drive.bars
    if drive.length.frames < FULL_DRIVE.frames and row.frames < FULL_DRIVE.frames:
        notes.append(f'{row.frames} frames ran; to measure drift use {FULL_DRIVE.frames} (--frames)')
    if not row.resets:
        notes.append('all frames are of one scene, so the reset was not tested')
    if not bars.is_float32:
        notes.append(
            f'judged with wider bars than float32: {tensor_text(bars.cosine)}, {100 * bars.match_rate:g} '
            f'% of the results matched within {bars.distance_m} m and score {bars.score}; a pair within '
            'these bars counts as matched'
        )
        if drive.memory.instances:
            notes.append('the choice of instances for the next frame and their track ids were not compared')
        if proof.engine.get('round_fp16'):
            notes.append(ROUNDED_FP16)
    notes += row.excused
    if count := sum(drive.runs['teacher'].substituted):
        notes.append(f"your test path returns the same {count} results from the file's outputs")
    return notes


class NearOrigin:
    """Frames; scenes starting beyond `NEAR_M` of the map's origin move to it by whole metres.

    The published model keeps global coordinates in float32: at 2 km, as in nuScenes, PyTorch is off by
    millimetres per frame. Whole metres keep all digits of a float32 pose.
    """

    def __init__(self, frames: Collection[Frame], with_moments: bool = False) -> None:
        self.frames, self.with_moments, self.moved_m = frames, with_moments, 0.0

    def __iter__(self) -> Iterator[Frame]:
        scene, offset = None, np.zeros(3)
        for index, frame in enumerate(self.frames):
            if index == 0 or frame.scene_token != scene:
                scene, offset = frame.scene_token, self._offset(frame)
            if offset.any():
                pose = np.array(frame.ego_pose, np.float64)
                pose[:3, 3] -= offset
                inverse = None if frame.ego_pose_inv is None else invert_pose(pose)
                frame = dataclasses.replace(frame, ego_pose=pose, ego_pose_inv=inverse)
            yield with_moment(frame, index) if self.with_moments else frame

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def notes(self) -> list[str]:
        if not self.moved_m:
            return []
        return [
            f'scenes were moved to the origin of the map, from up to {self.moved_m / 1e3:.1f} km away: no '
            "model uses the position, and PyTorch's memory (float32, global) loses precision with "
            'distance'
        ]

    def _offset(self, frame: Frame) -> np.ndarray:
        pose = getattr(frame, 'ego_pose', None)
        if np.shape(pose) != (4, 4):
            return np.zeros(3)  # a sweep, or a pose that the models report
        place = np.round(np.asarray(pose, np.float64)[:3, 3])
        distance = float(np.linalg.norm(place))
        if not distance > NEAR_M:
            return np.zeros(3)
        self.moved_m = max(self.moved_m, distance)
        return place


class Shifted:
    """A stepper that runs frames at another place and time.

    Engines with absolute float32 places fail there.
    """

    def __init__(
        self,
        stepper: Stepper,
        offset_m: tuple[float, float, float],
        offset_s: float = 0.0,
        turn_rad: float = 0.0,
    ) -> None:
        self.stepper, self.place, self.offset_s = stepper, np.eye(4), offset_s
        sine, cosine = np.sin(turn_rad), np.cos(turn_rad)
        self.place[:2, :2] = [[cosine, -sine], [sine, cosine]]
        self.place[:3, 3] = offset_m

    @property
    def state(self) -> StreamState | None:
        state = self.stepper.state
        return None if state is None else self._moved(state, -1)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.stepper.state = None if state is None else self._moved(state, 1)

    def reset(self) -> None:
        self.stepper.reset()

    def step(self, frame: Frame) -> StepResult:
        """Run a frame at the other place; the result is there."""
        moved = self._moved(frame, 1)
        inverse = None if frame.ego_pose_inv is None else invert_pose(moved.ego_pose)
        return self.stepper.step(dataclasses.replace(moved, ego_pose_inv=inverse))

    def _moved(self, posed: Any, sign: int) -> Any:
        pose = (self.place if sign > 0 else invert_pose(self.place)) @ np.asarray(posed.ego_pose, np.float64)
        return dataclasses.replace(posed, ego_pose=pose, timestamp_s=posed.timestamp_s + sign * self.offset_s)


def with_moment(frame: Frame, index: int) -> Frame:
    """Add a pose, time and scene to a frame of a data set without them."""
    moment = dict(ego_pose=np.eye(4), timestamp_s=index * FRAME_S, scene_token='')
    absent = {name: value for name, value in moment.items() if getattr(frame, name, value) is None}
    return dataclasses.replace(frame, **absent) if absent else frame


def _case(row: SequenceRow, shape: str) -> Case:
    passed = row.match_rate is None or row.match_rate >= row.match_bar
    detections = DetectionRow(
        f'all {row.frames} frames',
        row.reference,
        row.matched,
        row.missing,
        row.extra,
        worst_iou=row.worst_iou,
        worst_score=row.worst_score,
        passed=passed,
        reason='' if passed else f'{row.missing} missing, {row.extra} extra, {row.outside} outside the bars',
        outside=row.outside,
        worst_distance=row.worst_distance,
        low=row.low,
        low_alone=row.low_alone,
        excused=row.excused,
    )
    return Case(f'{row.title}, {row.frames} frames', shape, False, row.tensors, (detections,))
