"""Which units of a network have to stay in a higher precision, so that its results are kept."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.util.commands import tool
from mmdeploy_ext.util.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

MOST_TRIALS = 24
"""Runs over all samples in one search; after them the smallest plan that holds so far is taken."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """PyTorch's results of the samples, and how many of them a file gives; or a `metric` of both."""

    matched: float
    total: float
    metric: str = ''

    @property
    def share(self) -> float:
        return 1 - self.total + self.matched if self.metric else self.matched / max(self.total, 1)

    @property
    def text(self) -> str:
        if self.metric:
            return f'{self.metric} {self.matched:.4f} (PyTorch {self.total:.4f})'
        return f'{self.matched:,} of {self.total:,} results ({100 * self.share:.2f} %)'


@dataclasses.dataclass
class Search:
    """A search over units, which `run` puts into the higher precision.

    Attributes:
        run: units in the higher precision -> what is kept.
        least: share of the results.
        trials: units -> what was kept, in the order of the runs.
    """

    run: Callable[[Collection[str]], Kept]
    least: float
    trials: dict[frozenset[str], Kept] = dataclasses.field(default_factory=dict)

    def kept(self, units: Collection[str]) -> Kept:
        key = frozenset(units)
        if key not in self.trials:
            self.trials[key] = self.run(units)
        return self.trials[key]

    def holds(self, units: Collection[str]) -> bool:
        return self.kept(units).share >= self.least

    def higher(self, units: Sequence[str], start: Kept) -> list[str]:
        """Return the units that need the higher precision; `units` are ordered by their damage, worst first.

        ExportError: not even the file of `start`, with all of them there, keeps the share.
        """
        if self.holds(()):
            return []
        if start.share < self.least:
            raise ExportError(
                f'a share of {self.least:g} cannot be reached: with all modules in the higher precision '
                f'{start.text} are kept, with none {self.kept(()).text}; ask for {start.share:.4f} at most, '
                f'or find what else differs: {tool("verify")}'
            )
        low, high = 0, len(units)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.holds(units[:middle]) else (middle, high)
        needed = list(units[:high])
        for group in _halves(needed[:-1][::-1]):  # the last one is needed, as the bisection showed
            needed = self._without(needed, group)
        return needed

    def _without(self, needed: list[str], group: Sequence[str]) -> list[str]:
        """Return the needed units without those of a group that the results do not miss."""
        if len(self.trials) >= MOST_TRIALS:
            return needed
        rest = [unit for unit in needed if unit not in group]
        if self.holds(rest):
            return rest
        for half in _halves(group) if len(group) > 1 else ():
            needed = self._without(needed, half)
        return needed


def _halves(units: Sequence[str]) -> list[Sequence[str]]:
    middle = (len(units) + 1) // 2
    return [half for half in (units[:middle], units[middle:]) if half]
