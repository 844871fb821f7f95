"""Levels 2 to 4 of models with a memory: one pass over a drive, teacher-forced and free-running."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving import half
from mmdeploy_ext.proving.enough import too_few
from mmdeploy_ext.proving.levels.frames import FramesProof
from mmdeploy_ext.proving.levels.sequence_pair import Modes
from mmdeploy_ext.proving.levels.sequence_run import Bars
from mmdeploy_ext.proving.levels.shifted import Shifted
from mmdeploy_ext.proving.levels.synthetic import cases_of_family
from mmdeploy_ext.proving.results import Case, DetectionRow, Pair
from mmdeploy_ext.proving.tasks import bbox3d
from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Collection, Iterator

    from mmdeploy_ext.proving.results import SequenceRow
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult

FULL_DRIVE = Bars()
"""A hundred frames with a scene change: what a claim about drift is made of."""
SHORT_DRIVE = dataclasses.replace(FULL_DRIVE, frames=2, resets=0)
"""What `--verify` asks of whatever frames it is given; the verdict says how many there were."""

SPECIAL = 'frames with one thing of the rig changed, and of one colour'
FAR = dict(offset_m=(7e5, 4e6, 500.0), turn_rad=0.7)
"""A place as in UTM coordinates, where float32 has steps of a quarter of a metre, and another heading."""
NEAR_M = 100.0
"""Metres: scenes that begin this near to the origin stay where they are."""


def default_bars(precision: str) -> Bars:
    """Return what a drive has to keep; in less than float32 cosines, and results alike to the eye."""
    low = half.bars_of(precision)
    if low is None:
        return SHORT_DRIVE
    same = {name: getattr(low, name) for name in ('cosine', 'distance_m', 'score', 'match_rate')}
    return dataclasses.replace(SHORT_DRIVE, **same, near_counts=True, tie=2e-3)


class NearOrigin:
    """Frames of which every scene begins within a metre of the map's origin; all else is as it was.

    No model knows where on the map a drive is, but the published one keeps its memory in float32 and in
    global coordinates. Two kilometres out, where nuScenes was recorded, that costs some millimetres per
    frame, of either contract and of PyTorch itself, and would hide what a proof looks for. Whole metres are
    subtracted, so that a pose in float32 keeps every digit that it has.

    Attributes:
        frames: that are moved.
        moved_m: the farthest that a scene was moved so far.
    """

    def __init__(self, frames: Collection[Frame]) -> None:
        self.frames, self.moved_m = frames, 0.0

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames, moved."""
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
        if np.shape(frame.ego_pose) != (4, 4):
            return np.zeros(3)  # the models say what is wrong with it
        place = np.round(np.asarray(frame.ego_pose, np.float64)[:3, 3])
        distance = float(np.linalg.norm(place))
        if not distance > NEAR_M:
            return np.zeros(3)
        self.moved_m = max(self.moved_m, distance)
        return place


class DriveProof(FramesProof):
    """A proof on frames, read once. Scenes far out on the map are moved to its origin, see `NearOrigin`."""

    advice = (
        'use a drive with objects that this model finds, a longer one (--frames), and a trained checkpoint'
    )
    by_rate = False

    def __init__(self, *given: Any, bars: Bars | None = None) -> None:
        """See `Proof`; bars say what passes, None takes `default_bars`."""
        super().__init__(*given)
        self.bars = bars or default_bars(self.verdict.precision)
        self.first: Frame | None = None

    def start(self, stack: contextlib.ExitStack) -> None:
        super().start(stack)
        family, runners = self.deployment.family, dict(teacher=self.open_runner(stack), free=self.runner)
        memory = family.memory_spec(self.metadata[-1].postprocess)
        if self.verdict.precision != 'fp32':
            memory = memory.judged_by(self.spec)
        settings = dict(memory=memory, bars=self.bars, task=family.task)
        self.modes = Modes(self.reference, runners, self.spec, **settings)
        self.count, self.shape = 0, ''

    def inputs(self) -> NearOrigin:
        self.drive = NearOrigin(self.samples)
        total, parts = len(self.drive), 2 * self.most_pictures
        self.shown = {min(part * total // parts, total - 1) for part in range(1, parts, 2)}
        return self.drive

    def run(self, one: Frame) -> None:
        self.first = self.first or one
        expected, results = self.modes.add(one)
        self.shape = self.shape or 'x'.join(map(str, one.images.shape))
        if self.count in self.shown and 'free' in results:
            self.pictures.append(self._picture(one, expected, results['free']))
        self.count += 1

    def conclude(self) -> None:
        rows = self.modes.finish()
        self.verdict.sequence = list(rows.values())
        self.verdict.cases = [_case(rows['teacher'], self.shape)]
        super().conclude()
        if self.verdict.precision == 'fp32':
            family, model = self.deployment.family, self.deployment.model
            spec = self.metadata[-1].spec
            self.verdict.cases += cases_of_family(family, model, self.reference, self.runner, spec)
            self.run_special_frames()

    def run_special_frames(self) -> None:
        """Judge frames that no drive has: one thing of the rig changed, nothing to see.

        Files whose results ignore the place run them far out on the map, the reference near its origin.
        """
        if self.first is None:
            return
        memory = self.deployment.family.memory_spec(self.metadata[-1].postprocess)
        bars = dataclasses.replace(self.bars, frames=1, resets=0)
        settings = dict(memory=memory, bars=bars, task=self.deployment.family.task)
        candidate: Stepper = self.runner
        if self.deployment.family.ignores_places(self.asked_for):
            candidate = Shifted(self.runner, **FAR)
        modes = Modes(self.reference, dict(teacher=candidate), self.spec, **settings)
        for frame in self.deployment.family.special_samples(self.deployment.rule, self.first):
            modes.add(frame)
        row = modes.finish()['teacher']
        self.verdict.cases.append(dataclasses.replace(_case(row, self.shape), name=SPECIAL))
        if row.match_rate is not None:
            self.verdict.reasons += [f'{SPECIAL}: {reason}' for reason in row.reasons]

    def timing(self) -> dict[str, float]:
        return dict(zip(self.who, self.modes.clock.medians('reference', 'free').values(), strict=False))

    def reasons(self) -> list[str]:
        """See `Proof.reasons`; the rows of level 4 say what is wrong with them."""
        if not all(row.passed for row in self.verdict.sequence):
            return []
        return too_few(self.verdict.sequence[0].series['matched'], self.unit, self.advice)

    def notes(self) -> list[str]:
        row, bars, notes = self.verdict.sequence[-1], self.bars, []
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
            notes += [half.ROUNDED] * bool(self.engine.get('round_fp16'))
        notes += super().notes()
        if self.drive.moved_m:
            notes.append(
                f'scenes up to {self.drive.moved_m / 1e3:.1f} km out were moved to the origin of the map: '
                f"no model knows where it is, and PyTorch's memory (float32, global) is coarser with the "
                f'distance'
            )
        return notes

    def _picture(self, frame: Frame, expected: StepResult, found: StepResult) -> Pair:
        title = f'{frame.name or f"frame {self.count}"}, free-running, frame {self.count + 1} of the drive'
        return bbox3d.pair_of(frame, self.deployment.rule, title, expected.detections, found.detections)


def _case(row: SequenceRow, shape: str) -> Case:
    """Return levels 2 and 3: the worst of every tensor and all detections, each frame judged alone."""
    passed = row.match_rate is None or row.match_rate >= row.match_bar
    found = f'{row.missing} missing, {row.extra} extra, {row.outside} outside the bars'
    names = (
        *('reference', 'matched', 'missing', 'extra', 'outside', 'low', 'low_alone'),
        *('worst_score', 'worst_distance'),
    )
    counts = {name: getattr(row, name) for name in names}
    reason = '' if passed else found
    detections = DetectionRow(
        f'all {row.frames} frames', worst_iou=1.0, passed=passed, reason=reason, **counts
    )
    return Case(f'{row.title}, {row.frames} frames', shape, False, row.tensors, (detections,))
