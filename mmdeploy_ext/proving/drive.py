"""The proof of files with a memory, `prove_frames`: one pass over a drive in two modes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.errors import LoadError
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.proving.drive_run import (
    FULL_DRIVE,
    MAX_DRAWN,
    NOTHING_FOUND,
    SHORT_DRIVE,
    DriveLength,
    Drives,
)
from mmdeploy_ext.proving.frames import (
    check_frames,
    counts_of,
    limits,
    open_runner,
    open_sides,
    read_files,
)
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.not_shown import Watch
from mmdeploy_ext.proving.proof import ROUNDED_FP16, compare_samples, conclude, not_loaded
from mmdeploy_ext.proving.recorded.calls import RecordedStepper
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.spec.matching import too_few
from mmdeploy_ext.spec.results import Case, DetectionRow, tensor_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.proof import Proof
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState
    from mmdeploy_ext.spec.results import SequenceRow
    from mmdeploy_ext.spec.verdict import Verdict

ADVICE = 'use a drive with objects that this model finds, more frames (--frames) and a trained checkpoint'
"""Advice for too few matched results of a drive."""
SPECIAL = 'frames with one change of the rig, and frames of one colour'
"""Title of the case of `special_frames`."""
FAR = dict(offset_m=(7e5, 4e6, 500.0), turn_rad=0.7)
"""A place as in UTM, with float32 steps of 0.25 m, and another heading."""
FRAME_S = 0.5
"""Seconds between frames without times, as between key frames of nuScenes."""
NEW_SCENE = 'the first frame again'
"""Scene of the first frame when it is recorded again; it makes a detector reset its memory."""
NEAR_M = 100.0
"""Metres: scenes that start nearer to the origin stay."""


def prove_frames(
    detector: Detector,
    paths: Sequence[str],
    frames: Collection[Frame],
    engine: Mapping[str, Any],
    claims: Claims,
    length: DriveLength = SHORT_DRIVE,
) -> Verdict:
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
            results.reasons += too_few(both or matched, 'frame', ADVICE)
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


def ask_samples(detector: Detector, paths: Sequence[str], samples: Collection[Any]) -> None:
    """Run PyTorch on the proof's samples, for `detector.recording`."""
    files, options = read_files(detector, paths)
    family, reference = detector.family, contract_of(detector.family, options).reference(detector.model)
    stepper, first = RecordedStepper(detector, reference), None
    if family.memory:
        stepper.reset()
        moments = not family.memory_spec(files[-1].metadata.postprocess).tensors
        samples = NearOrigin(samples, with_moments=moments)
    for sample in tracked(samples, len(samples), 'asking'):
        stepper.step(sample)
        first = first or sample
    if first is not None:  # like the proof: run it again after a reset
        stepper.reset()
        stepper.step(dataclasses.replace(first, scene_token=NEW_SCENE) if family.memory else first)


def special_frames(
    frames: Iterable[Frame],
    runner: Stepper,
    drives_of: Callable[..., Drives],
    shape: str,
) -> tuple[list[Case], list[str]]:
    """Judge frames with one part of the rig changed, or plain images."""
    drives = drives_of(dict(teacher=runner), length=DriveLength(1, 0), frames=[*frames])
    _, again, _ = compare(drives)
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
