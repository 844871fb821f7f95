"""Parts of proofs: level 1 alone, levels 2 and 3 by references, two engines over one drive, near and far."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proof.ladder import open_proof
from mmdeploy_ext.proof.levels.cases import judge_outputs, run_case
from mmdeploy_ext.proof.levels.run_twice import attempt
from mmdeploy_ext.proof.levels.sequence_pair import Modes
from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.proof.references import Reference
    from mmdeploy_ext.proof.results import Case, SequenceRow
    from mmdeploy_ext.proof.verdict import Verdict
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState

UTM_M = 7e5, 4e6, 500.0
"""x, y, z: metres as in UTM coordinates."""
LATE_S = 1.6e9 + 20 * 60
"""Seconds: a time stamp of these days, twenty minutes into a drive."""


def check_files(deployment: Any, paths: Any, samples: Any = (), edited: bool = False) -> Verdict:
    """Return level 1 alone."""
    return open_proof(deployment, paths, samples).check(edited)


def run_cases(known: Iterable[Reference], backend: Backend) -> Iterator[Case]:
    """Yield the cases of levels 2 and 3: who wants the first that fails need not run the rest."""
    for reference in known:
        yield from run_case(reference, backend)[0]


def run_pair(
    reference: Stepper,
    candidate: Stepper,
    frames: Iterable[Frame],
    spec: GraphSpec,
    mode: str = 'free',
    **settings: Any,
) -> SequenceRow:
    """Run two engines over a drive in one mode; see `run_modes` for the arguments."""
    return run_modes(reference, {mode: candidate}, frames, spec, **settings)[mode]


def run_modes(
    reference: Stepper,
    candidates: Mapping[str, Stepper],
    frames: Iterable[Frame],
    spec: GraphSpec,
    **settings: Any,
) -> dict[str, SequenceRow]:
    """Run the reference once over a drive, and beside it one candidate per mode; see `Modes`.

    Args:
        reference: the unpatched PyTorch model.
        candidates: by mode.
        frames: the drive; read once.
        spec: of the outputs.
        settings: of `Modes`.

    Returns:
        mode -> what was found.
    """
    modes = Modes(reference, candidates, spec, **settings)
    for frame in frames:
        modes.add(frame)
    return modes.finish()


def run_once(known: Iterable[Reference], backend: Backend) -> Iterator[Case]:
    """Yield the same of one run of each input: for files that give the same bits whenever they run."""
    for reference in known:
        feeds = reference.feeds_of(backend.metadata)
        yield judge_outputs(reference, backend, attempt(functools.partial(backend.infer, feeds)))[0]


class Shifted:
    """A stepper that runs frames elsewhere on the map and at another time, and tells of it as if at home.

    Attributes:
        stepper: the engine that runs.
        offset_m: (3,) added to the place.
        offset_s: added to the time.
    """

    def __init__(self, stepper: Stepper, offset_m: tuple[float, float, float], offset_s: float) -> None:
        self.stepper, self.offset_m, self.offset_s = stepper, np.asarray(offset_m, np.float64), offset_s

    @property
    def state(self) -> StreamState | None:
        """The memory after the last frame, with the pose and time at home."""
        state = self.stepper.state
        return None if state is None else self._moved(state, -1)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.stepper.state = None if state is None else self._moved(state, 1)

    def reset(self) -> None:
        """Empty the memory."""
        self.stepper.reset()

    def step(self, frame: Frame) -> StepResult:
        """Run a frame over there."""
        moved = self._moved(frame, 1)
        inverse = None if frame.ego_pose_inv is None else invert_pose(moved.ego_pose)
        return self.stepper.step(dataclasses.replace(moved, ego_pose_inv=inverse))

    def _moved(self, what: Any, sign: int) -> Any:
        pose = np.array(what.ego_pose, np.float64)
        pose[:3, 3] += sign * self.offset_m
        return dataclasses.replace(what, ego_pose=pose, timestamp_s=what.timestamp_s + sign * self.offset_s)


def run_far(
    at_home: Stepper,
    far_away: Stepper,
    frames: Iterable[Frame],
    spec: GraphSpec,
    offset_m: tuple[float, float, float] = UTM_M,
    offset_s: float = LATE_S,
    **settings: Any,
) -> SequenceRow:
    """Run an engine over a drive, and a second one of the same files over the drive moved and delayed.

    Args:
        at_home: the engine on the drive as it is; best near the origin and with times near 0.
        far_away: another one of the same files.
        frames: the drive.
        spec: see `run_modes`.
        offset_m: added to every place.
        offset_s: added to every time.
        settings: of `run_modes`.

    Returns:
        The free-running comparison; its tensors have the tolerances of the spec as their scale.
    """
    return run_pair(at_home, Shifted(far_away, offset_m, offset_s), frames, spec, 'free', **settings)
