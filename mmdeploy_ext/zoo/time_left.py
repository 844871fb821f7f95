"""An estimate of the time that a run of many configs still takes."""

import time
from collections.abc import Sequence

from mmdeploy_ext.zoo.records import Record


class TimeLeft:
    """The rest of a run, from what its configs cost in CPU time and how fast the run gets on.

    A config of which all exports of this run were tried before, and took CPU time, is taken to cost what it
    cost then. Any other, such as a model of sweeps, which has one export, is taken to cost what those of
    which the costs are known do in the mean.

    Attributes:
        total: number of models of the run.
        costs, expected_costs: config -> CPU seconds in this run, of those that are done, and in the earlier;
            of a proof that was taken over those of its record, which the earlier run took.
        start_s: when the run began, by `time.monotonic`.
    """

    def __init__(self, earlier: Sequence[Record | None], export_kinds: Sequence[str]) -> None:
        """Begin the run.

        Args:
            earlier: record of an earlier run for each model of this run; None if there is none. No config
                comes twice.
            export_kinds: exports that the run makes, of `records.EXPORT_KINDS`.
        """
        self.export_kinds = export_kinds
        self.expected_costs: dict[str, float] = {}
        for record in filter(None, earlier):
            outcomes = [getattr(record, kind) for kind in export_kinds]
            cost = sum(outcome.seconds for outcome in outcomes) if all(outcomes) else 0.0
            if cost:
                self.expected_costs[record.config] = cost
        self.total = len(earlier)
        self.costs: dict[str, float] = {}
        self.start_s = time.monotonic()

    def end(self, record: Record) -> None:
        """Count a model as done.

        Args:
            record: its record; it costs the CPU seconds of the exports of this run that were tried.
        """
        outcomes = (getattr(record, kind) for kind in self.export_kinds)
        self.costs[record.config] = sum(outcome.seconds for outcome in outcomes if outcome)

    @property
    def seconds(self) -> float | None:
        """The wall seconds that are left; None as long as no model that is done has cost CPU time."""
        spent = sum(self.costs.values())
        if not spent:
            return None
        costs = self.expected_costs | self.costs
        mean = sum(costs.values()) / len(costs)
        expected = [cost for name, cost in self.expected_costs.items() if name not in self.costs]
        unknown = self.total - len(self.costs) - len(expected)
        return (time.monotonic() - self.start_s) / spent * (sum(expected) + unknown * mean)


def duration_text(seconds: float) -> str:
    """Return a duration in words, to the nearest minute: '1 min' at least, '1 h 23 min' from an hour on.

    Args:
        seconds: the duration, finite, 0 or more.
    """
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'
