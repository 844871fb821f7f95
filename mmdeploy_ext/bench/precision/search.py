"""Which units of a network must stay in a higher precision to keep its results."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from typing import TYPE_CHECKING

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mmdeploy_ext.exporting.precision_plan import Kept

MOST_TRIALS, MOST_TRIALS_INT8 = 12, 8
"""Maximum of runs over all samples; then the smallest valid plan so far is used.

Layers in INT8 add errors of the same size: after a few runs only chance decides which plan holds.
"""
LARGEST = 1e6
"""Largest size of a unit: infinite errors count the same."""


@dataclasses.dataclass
class Search:
    """A search over units; `run` puts them into the higher precision.

    Attributes:
        run: units in the higher precision -> `Kept`.
        least: share of the results.
        most: runs.
        trials: units -> `Kept`, in the order of the runs.
    """

    run: Callable[[Collection[str]], Kept]
    least: float
    most: int = MOST_TRIALS
    trials: dict[frozenset[str], Kept] = dataclasses.field(default_factory=dict)

    def kept(self, units: Collection[str]) -> Kept:
        key = frozenset(units)
        if key not in self.trials:
            self.trials[key] = self.run(units)
        return self.trials[key]

    def holds(self, units: Collection[str]) -> bool:
        return self.kept(units).share >= self.least

    def higher(self, sizes: Mapping[str, float], start: Kept) -> list[str]:
        """Return the units that need the higher precision; `sizes`: unit -> what is halved, worst unit first.

        ExportError: even with all units there, `start` loses the share.
        """
        if self.holds(()):
            return []
        if start.share < self.least:
            raise ExportError(
                f'a share of {self.least:g} cannot be reached: with all modules in the higher precision '
                f'{start.text} are kept, with none {self.kept(()).text}; ask for {start.share:.4f} at most, '
                f'or find what else differs: {tool("verify")}'
            )
        units = list(sizes)
        sums = [0.0, *itertools.accumulate(min(size, LARGEST) for size in sizes.values())]
        low, high = 0, len(units)
        while high - low > 1 and len(self.trials) < self.most:
            middle = bisect.bisect_left(sums, (sums[low] + sums[high]) / 2, low + 1, high - 1)
            low, high = (low, middle) if self.holds(units[:middle]) else (middle, high)
        needed = units[:high]
        for group in _halves(needed[:-1][::-1]):  # bisection showed that the last one is needed
            needed = self._without(needed, group)
        return needed

    def _without(self, needed: list[str], group: Sequence[str]) -> list[str]:
        """Return the needed units without units of a group that change no results."""
        if len(self.trials) >= self.most:
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
