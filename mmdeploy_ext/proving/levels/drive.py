"""Levels 2 to 4 of models with a memory (tensors, results, sequence): one pass over a drive in two modes.

Teacher-forced, the file gets PyTorch's memory before every frame; free-running, it goes on with its own. A
stepper is a model on an engine that runs frame by frame and keeps its memory.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving import half_bars
from mmdeploy_ext.proving.levels.drive_run import FULL_DRIVE, NOTHING_FOUND, Modes, default_bars
from mmdeploy_ext.proving.levels.frames import FramesProof
from mmdeploy_ext.proving.results import Case, DetectionRow
from mmdeploy_ext.proving.tasks import bbox3d
from mmdeploy_ext.proving.tasks.matching import too_few
from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Collection, Iterator, Mapping

    from mmdeploy_ext.proving.levels.drive_run import DriveBars
    from mmdeploy_ext.proving.results import SequenceRow
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState

SPECIAL = 'frames with one thing of the rig changed, and of one colour'
"""Title of the case of `DriveProof.run_special_frames`."""
FAR = dict(offset_m=(7e5, 4e6, 500.0), turn_rad=0.7)
"""A place as in UTM coordinates, where float32 has steps of a quarter of a metre, and another heading."""
FRAME_S = 0.5
"""Seconds between frames whose data set has no times, as between key frames of nuScenes."""
NEAR_M = 100.0
"""Metres: scenes that begin this near to the origin stay where they are."""


class NearOrigin:
    """Frames; scenes that begin beyond `NEAR_M` of the map's origin are moved to begin within a metre of it.

    Nothing else changes; a position in `can_bus` stays, too. A model's results do not depend on the place on
    the map, but the published one keeps its memory in float32 and in global coordinates. Two kilometres from
    the origin, where nuScenes was recorded, that is an error of some millimetres per frame in every file and
    in PyTorch itself, which would hide the errors that a proof looks for. Whole metres are subtracted, so
    that a pose in float32 keeps all of its digits.

    Attributes:
        frames: the frames before they are moved.
        moved_m: the farthest that a scene was moved so far, metres.
    """

    def __init__(self, frames: Collection[Frame]) -> None:
        self.frames, self.moved_m = frames, 0.0

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, moved."""
        scene, offset = None, np.zeros(3)
        for index, frame in enumerate(self.frames):
            if index == 0 or frame.scene_token != scene:
                scene, offset = frame.scene_token, self._offset(frame)
            if offset.any():
                pose = np.array(frame.ego_pose, np.float64)
                pose[:3, 3] -= offset
                inverse = None if frame.ego_pose_inv is None else invert_pose(pose)
                frame = dataclasses.replace(frame, ego_pose=pose, ego_pose_inv=inverse)
            yield frame

    def __len__(self) -> int:
        return len(self.frames)

    def _offset(self, frame: Frame) -> np.ndarray:
        """Return the offset (3,) in metres that is subtracted from a scene that begins with a frame."""
        if np.shape(frame.ego_pose) != (4, 4):
            return np.zeros(3)  # the models refuse such a pose with a message
        place = np.round(np.asarray(frame.ego_pose, np.float64)[:3, 3])
        distance = float(np.linalg.norm(place))
        if not distance > NEAR_M:
            return np.zeros(3)
        self.moved_m = max(self.moved_m, distance)
        return place


class Shifted:
    """A stepper that runs frames at another place on the map and at another time.

    Its `state` is at the place and time of the frames. Poses and `timestamp_s` alone are moved, not
    `camera_times_s`, `can_bus` or the tensors of a state, so that a memory in the map does not fit there. An
    engine that computes absolute places in float32 gives wrong results far from the origin.

    Attributes:
        stepper: the engine that runs.
        place: (4, 4) float64, from the map of the frames to that on which the engine runs.
        offset_s: seconds that are added to the time.
    """

    def __init__(
        self,
        stepper: Stepper,
        offset_m: tuple[float, float, float],
        offset_s: float = 0.0,
        turn_rad: float = 0.0,
    ) -> None:
        """Keep the engine; places are turned about the vertical axis first, then `offset_m` is added."""
        self.stepper, self.place, self.offset_s = stepper, np.eye(4), offset_s
        sine, cosine = np.sin(turn_rad), np.cos(turn_rad)
        self.place[:2, :2] = [[cosine, -sine], [sine, cosine]]
        self.place[:3, 3] = offset_m

    @property
    def state(self) -> StreamState | None:
        """The memory after the last frame, with pose and time of that frame; None if it is empty."""
        state = self.stepper.state
        return None if state is None else self._moved(state, -1)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.stepper.state = None if state is None else self._moved(state, 1)

    def reset(self) -> None:
        """Empty the memory."""
        self.stepper.reset()

    def step(self, frame: Frame) -> StepResult:
        """Run a frame at the other place, and return the result as the engine gives it, not moved back."""
        moved = self._moved(frame, 1)
        inverse = None if frame.ego_pose_inv is None else invert_pose(moved.ego_pose)
        return self.stepper.step(dataclasses.replace(moved, ego_pose_inv=inverse))

    def _moved(self, posed: Any, sign: int) -> Any:
        """Return a frame or a state with its pose and time moved there (`sign` 1), or back (-1)."""
        pose = (self.place if sign > 0 else invert_pose(self.place)) @ np.asarray(posed.ego_pose, np.float64)
        return dataclasses.replace(posed, ego_pose=pose, timestamp_s=posed.timestamp_s + sign * self.offset_s)


class DriveProof(FramesProof):
    """A proof on frames, read once. Scenes far from the map's origin are moved to it, see `NearOrigin`.

    `Proof` and `FramesProof` describe the methods.

    Attributes:
        bars: the limits that the drive is judged by.
        memory: the family's description of the memory.
        modes: both sides in both modes, frame by frame.
        drive: the frames that run.
        drawn_frames: indices of the frames that the report draws.
        first: the first frame; None before it ran.
        count: number of frames that ran.
        most_results: the most results that PyTorch had of a frame.
        shape: shape of the first frame's pictures, as text.
    """

    advice = (
        'use a drive with objects that this model finds, a longer one (--frames), and a trained checkpoint'
    )
    by_rate = False

    def __init__(self, *arguments: Any, bars: DriveBars | None = None) -> None:
        """Read the files as `Proof` does; `bars` None takes `default_bars`."""
        super().__init__(*arguments)
        self.bars = bars or default_bars(self.verdict.precision)
        self.first: Frame | None = None

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open PyTorch's side and, for each mode, the files on the engine."""
        super().start(stack)
        self.memory = self.deployment.family.memory_spec(self.metadata[-1].postprocess)
        if self.verdict.precision != 'fp32':
            self.memory = self.memory.judged_by(self.spec)
        runners = dict(teacher=self.open_runner(stack), free=self.runner)
        self.modes = self._modes(runners, self.bars)
        self.count, self.most_results, self.shape = 0, 0, ''

    def _modes(self, candidates: Mapping[str, Stepper], bars: DriveBars) -> Modes:
        task = self.deployment.family.task
        return Modes(self.reference, candidates, self.spec, memory=self.memory, bars=bars, task=task)

    def inputs(self) -> NearOrigin:
        """Return the frames, moved to the origin, and choose those that the report draws."""
        self.drive = NearOrigin(self.samples)
        total, parts = len(self.drive), 2 * self.max_drawn
        self.drawn_frames = {min(part * total // parts, total - 1) for part in range(1, parts, 2)}
        return self.drive

    def run(self, sample: Frame) -> None:
        """Run both sides on one frame in both modes.

        Of a model without a memory it needs no pose, time and scene.
        """
        if not self.memory.tensors:
            sample = with_moment(sample, self.count)
        self.first = self.first or sample
        expected, results = self.modes.add(sample)
        self.most_results = max(self.most_results, len(expected.detections))
        self.shape = self.shape or 'x'.join(map(str, sample.images.shape))
        if self.count in self.drawn_frames and 'free' in results:
            title = (
                f'{sample.name or f"frame {self.count}"}, free-running, frame {self.count + 1} of the drive'
            )
            sides = expected.detections, results['free'].detections
            self.pictures.append(bbox3d.pair_of(sample, self.deployment.rule, title, *sides))
        self.count += 1

    def run_again(self, sample: Frame) -> None:
        """Do nothing: `Modes.finish` runs the first frame again."""

    def conclude(self) -> None:
        """Judge the drive; for files in float32 add the case of special frames."""
        rows = self.modes.finish()
        self.results.sequence = list(rows.values())
        case = _case(rows['teacher'], self.shape)
        self.results.cases = [dataclasses.replace(case, counts=self.counts_of(self.most_results))]
        super().conclude()
        if self.verdict.precision == 'fp32':
            self.run_special_frames()

    def run_special_frames(self) -> None:
        """Judge frames that no drive has: with one part of the rig changed, or pictures of one colour.

        The family's `special_samples` may begin with the rig as it was, and end with other poses and times.
        They are one teacher-forced drive, which may be without any detection.

        Files whose results must not depend on the place run them at `FAR`, the reference near the origin.
        """
        if self.first is None:
            return
        family = self.deployment.family
        bars = dataclasses.replace(self.bars, frames=1, resets=0)
        candidate: Stepper = self.runner
        if family.ignores_places(self.export_options):
            candidate = Shifted(self.runner, **FAR)
        modes = self._modes(dict(teacher=candidate), bars)
        for frame in family.special_samples(self.deployment.rule, self.first):
            modes.add(frame)
        if modes.first is None:
            return
        row = modes.finish()['teacher']
        self.results.cases.append(dataclasses.replace(_case(row, self.shape), name=SPECIAL))
        reasons = (reason for reason in row.reasons if reason != NOTHING_FOUND)
        self.results.reasons += [f'{SPECIAL}: {reason}' for reason in reasons]

    def timing(self) -> dict[str, float]:
        return dict(
            zip(self.engine_titles, self.modes.clock.medians('reference', 'free').values(), strict=False)
        )

    def reasons(self) -> list[str]:
        """Return why too few results were matched; if rows of level 4 fail, their own reasons are enough."""
        if not all(row.passed for row in self.results.sequence):
            return []
        return too_few(self.results.sequence[0].series['matched'], self.unit, self.advice)

    def notes(self) -> list[str]:
        row, bars, notes = self.results.sequence[-1], self.bars, []
        if bars.frames < FULL_DRIVE.frames and row.frames < FULL_DRIVE.frames:
            notes.append(f'{row.frames} frames ran; a claim about drift needs {FULL_DRIVE.frames} (--frames)')
        if not row.resets:
            notes.append('no scene changed in these frames, so that the reset was not shown')
        if bars.cosine is not None:
            notes.append(
                f'judged by bars that are not those of float32: {half_bars.tensor_text(bars.cosine)}, '
                f'{100 * bars.match_rate:g} % of the results matched within {bars.distance_m} m and score '
                f'{bars.score}; pairs that are only near count as matched'
            )
            if self.memory.confidence:
                notes.append('which instances are handed on, and the ids of their tracks, were not compared')
            if self.engine.get('round_fp16'):
                notes.append(half_bars.ROUNDED)
        if count := self.modes.substituted:
            notes.append(f"the user's head gives {count} results of the file's own outputs, one to one")
        notes += super().notes()
        if self.drive.moved_m:
            notes.append(
                f'scenes up to {self.drive.moved_m / 1e3:.1f} km out were moved to the origin of the map: '
                f"no model knows where it is, and PyTorch's memory (float32, global) is coarser with the "
                f'distance'
            )
        return notes


def with_moment(frame: Frame, index: int) -> Frame:
    """Return a frame with a pose, a time and a scene: its own, or others if its data set has none.

    Only for models that read none of them. The pose is that of a car at the origin, and the frames, of which
    it is the one at `index` of the drive, are `FRAME_S` apart in one scene.
    """
    moment = dict(ego_pose=np.eye(4), timestamp_s=index * FRAME_S, scene_token='')
    absent = {name: value for name, value in moment.items() if getattr(frame, name) is None}
    return dataclasses.replace(frame, **absent) if absent else frame


def _case(row: SequenceRow, shape: str) -> Case:
    """Return levels 2 and 3 of a row of teacher-forced frames: the worst of every tensor, and all results."""
    passed = row.match_rate is None or row.match_rate >= row.match_bar
    detections = DetectionRow(
        f'all {row.frames} frames',
        row.reference,
        row.matched,
        row.missing,
        row.extra,
        worst_iou=1.0,
        worst_score=row.worst_score,
        passed=passed,
        reason='' if passed else f'{row.missing} missing, {row.extra} extra, {row.outside} outside the bars',
        outside=row.outside,
        worst_distance=row.worst_distance,
        low=row.low,
        low_alone=row.low_alone,
    )
    return Case(f'{row.title}, {row.frames} frames', shape, False, row.tensors, (detections,))
