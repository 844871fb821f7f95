"""Reading point files for a model. Needs numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.config import test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.preprocess.fusion import AGE, PastSweeps

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class PointRule:
    """How files become the points that a model takes.

    Attributes:
        load_dim: values per point in a file.
        use_dim: columns that the model takes.
        past: merging of past sweeps of infos, or None.
        past_dim: columns after merging; None keeps all.
    """

    load_dim: int
    use_dim: tuple[int, ...]
    past: PastSweeps | None = None
    past_dim: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for columns, width, step in (
            (self.use_dim, self.load_dim, 'LoadPointsFromFile'),
            (self.past_dim or (), len(self.use_dim), 'LoadPointsFromMultiSweeps'),
        ):
            if columns and not 0 <= min(columns) <= max(columns) < width:
                raise ConfigError(f'{step}: use_dim={list(columns)}; expected columns of {width} values')

    @classmethod
    def from_pipeline(cls, steps: list[Mapping[str, Any]], in_channels: int) -> PointRule:
        """Rule of LoadPointsFromFile and LoadPointsFromMultiSweeps, else `in_channels` values per point."""
        step_of = {step.get('type'): step for step in steps}
        file_step = step_of.get('LoadPointsFromFile')
        if file_step is None:
            return cls(in_channels, tuple(range(in_channels)))
        load_dim, use_dim = int(file_step.get('load_dim', 6)), _columns(file_step.get('use_dim', [0, 1, 2]))
        past_step = step_of.get('LoadPointsFromMultiSweeps')
        if past_step is None:
            return cls(load_dim, use_dim)
        if (column := past_step.get('time_dim', AGE)) != AGE:
            raise ConfigError(f'LoadPointsFromMultiSweeps: time_dim={column}; expected {AGE}')
        if (past_dim := int(past_step.get('load_dim', 5))) != load_dim:
            raise ConfigError(
                f'LoadPointsFromMultiSweeps: load_dim={past_dim}; expected {load_dim} as in '
                'LoadPointsFromFile, since all files have one format'
            )
        past = PastSweeps(
            max_sweeps=int(past_step.get('sweeps_num', 10)),
            pad_empty=bool(past_step.get('pad_empty_sweeps', False)),
            remove_close=bool(past_step.get('remove_close', False)),
        )
        return cls(load_dim, use_dim, past, _columns(past_step.get('use_dim', [0, 1, 2, 4])))


def point_rule(cfg: Any, in_channels: int) -> PointRule:
    """`PointRule.from_pipeline` of a config's test pipeline."""
    try:
        steps = test_pipeline(cfg)
    except ConfigError:
        steps = []
    return PointRule.from_pipeline(steps, in_channels)


def _columns(value: int | list[int]) -> tuple[int, ...]:
    return tuple(range(value)) if isinstance(value, int) else tuple(value)
