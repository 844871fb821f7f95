"""What a driving model gives besides boxes: lines of the map, trajectories, a plan. Needs numpy only.

And what it takes: the command of the driver.

n results, P points, K modes, T steps; metres in the LiDAR frame.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.detections import Scored
from mmdeploy_ext.runtime.detections3d import Detections3D

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from mmdeploy_ext.runtime.frames import Frame

COMMANDS = ('right', 'left', 'straight on')
"""Commands of nuScenes' infos in the order of the models."""


def command_of(frame: Frame) -> int:
    """Return a frame's index in `COMMANDS`."""
    command = np.asarray(frame.command if frame.command is not None else [], np.float64)
    if command.shape != (len(COMMANDS),) or sorted(command) != [0, 0, 1]:
        raise DataError(
            f'command: got {command.tolist()}, expected a single 1 for one of {", ".join(COMMANDS)} '
            '(gt_ego_fut_cmd of the infos)'
        )
    return int(command.argmax())


def with_command(frame: Frame, info: Mapping[str, Any]) -> Frame:
    """Return a frame with the command of its info."""
    command = info.get('gt_ego_fut_cmd')
    return dataclasses.replace(frame, command=None if command is None else np.array(command, np.float64))


@dataclasses.dataclass(frozen=True)
class Polylines(Scored):
    """Lines of the map of one frame, best first.

    Attributes:
        points: (n, P, 2) float32 x, y in the order of the line.
    """

    points: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def place(self, index: int) -> dict[str, Any]:
        return dict(points=self.points[index].round(4).tolist())


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the car is to go.

    Attributes:
        points: (K, T, 2) float32 x, y of each mode.
        scores: (K,) float32 in 0..1, after a rescoring.
        mode: the chosen one.
        final: (T, 2) float32 the plan to drive.
    """

    points: np.ndarray
    scores: np.ndarray
    mode: int
    final: np.ndarray


@dataclasses.dataclass(frozen=True)
class DrivingScene(Detections3D):
    """Boxes of one frame with their trajectories, lines and the plan.

    Attributes:
        trajectories: (n, K, T, 2) float32 x, y.
        mode_scores: (n, K) float32.
        line_points, line_scores, line_labels: of `lines`.
        plan_points, plan_scores, plan_mode, plan_final: of `plan`; the mode is (1,) int64.
    """

    trajectories: np.ndarray | None = None
    mode_scores: np.ndarray | None = None
    line_points: np.ndarray | None = None
    line_scores: np.ndarray | None = None
    line_labels: np.ndarray | None = None
    plan_points: np.ndarray | None = None
    plan_scores: np.ndarray | None = None
    plan_mode: np.ndarray | None = None
    plan_final: np.ndarray | None = None

    @property
    def lines(self) -> Polylines:
        return Polylines(self.line_points, self.line_scores, self.line_labels)

    @property
    def plan(self) -> Plan:
        return Plan(self.plan_points, self.plan_scores, int(self.plan_mode[0]), self.plan_final)

    def __getitem__(self, rows: np.ndarray | slice) -> Self:
        """Return the scene with some of its boxes."""
        names = [
            field.name for field in dataclasses.fields(self) if not field.name.startswith(('line_', 'plan_'))
        ]
        values = {name: getattr(self, name) for name in names}
        return dataclasses.replace(
            self, **{name: None if value is None else value[rows] for name, value in values.items()}
        )

    def above(self, score_thr: float) -> Self:
        lines = self.lines.above(score_thr)
        return dataclasses.replace(
            super().above(score_thr),
            line_points=lines.points,
            line_scores=lines.scores,
            line_labels=lines.labels,
        )

    def without_motion(self) -> Self:
        """Return the scene with all trajectories and the plan at the origin."""
        names = 'trajectories', 'mode_scores', 'plan_points', 'plan_scores', 'plan_mode', 'plan_final'
        return dataclasses.replace(self, **{name: np.zeros_like(getattr(self, name)) for name in names})

    def place(self, index: int) -> dict[str, Any]:
        best = self.mode_scores[index].argmax()
        return super().place(index) | dict(trajectory=self.trajectories[index, best].round(4).tolist())

    def to_json(self, classes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Boxes, then `line`s, and the `plan` at last."""
        lines = [
            dict(line=entry['label'], score=entry['score'], points=entry['points'])
            for entry in self.lines.to_json()
        ]
        plan = dict(plan=self.plan.final.round(4).tolist(), mode=self.plan.mode)
        return [*super().to_json(classes), *lines, plan]

    def ground_lines(self) -> list[tuple[np.ndarray, int]]:
        best = self.mode_scores.argmax(1)
        starts = self.boxes[:, None, :2]
        ways = np.concatenate([starts, self.trajectories[np.arange(len(best)), best]], 1)
        lines = [*zip(ways, self.labels.tolist(), strict=True)]
        lines += zip(self.lines.points, (self.lines.labels + LINE_COLOURS).tolist(), strict=True)
        return [
            *lines,
            (np.concatenate([np.zeros((1, 2), np.float32), self.plan.final]), PLAN_COLOUR),
        ]


LINE_COLOURS, PLAN_COLOUR = 10, -1
"""First class colour of lines; the plan is white."""
