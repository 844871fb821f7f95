"""What level 4 keeps of the tensors of a drive: their errors by frame, and the worst row of each."""

import dataclasses

import numpy as np

from mmdeploy_ext.proving.rows import TensorRow


class WorstRows:
    """The worst row of every tensor, and its error at every frame.

    Attributes:
        worst: tensor -> its worst row, `at` its frame; the histograms add up.
        failed: tensor -> frames at which it fails.
        series: `errors` and `ratios` (the same over its tolerance), by tensor, one entry per frame.
    """

    def __init__(self, free: bool, cosine: float | None) -> None:
        """Keep how rows are judged: free, only those fail that cannot be compared; else by a cosine."""
        self.free, self.cosine = free, cosine
        self.worst: dict[str, TensorRow] = {}
        self.failed: dict[str, list[str]] = {}
        self.series: dict[str, dict[str, list[float | None]]] = dict(errors={}, ratios={})

    def keep(self, row: TensorRow, name: str, count: int) -> None:
        """Judge one row of the frame of that name, which is the `count`-th."""
        passed = self._judge(row)
        ratio = of_tolerance(row) if row.max_abs is not None and row.tolerance else None
        for key, value in (('errors', row.max_abs), ('ratios', ratio)):
            values = self.series[key].setdefault(row.tensor, [])
            values += [None] * (count - 1 - len(values))
            values.append(value)
        if not passed:
            self.failed.setdefault(row.tensor, []).append(name)
        reason = '' if passed else row.reason or f'cosine {row.cosine:.6f} below {self.cosine}'
        row = dataclasses.replace(row, passed=passed, reason=reason, at=name)
        if known := self.worst.get(row.tensor):
            both = known.histogram, row.histogram
            histogram = tuple(map(sum, zip(*both, strict=True))) if all(both) else both[0] or both[1]
            worse = (not row.passed, of_tolerance(row)) > (not known.passed, of_tolerance(known))
            row = dataclasses.replace(row if worse else known, histogram=histogram)
        self.worst[row.tensor] = row

    def _judge(self, row: TensorRow) -> bool:
        if row.max_abs is None:
            return False
        if self.free or self.cosine is None:
            return row.passed or self.free
        return row.cosine is not None and row.cosine >= self.cosine

    def reasons(self, frames: int) -> list[str]:
        """Return one sentence per tensor that fails, of so many frames that ran."""
        return [
            f'{tensor}: {len(names)} of {frames} frames fail, first {names[0]}; worst '
            f'{self.worst[tensor].at}: {self.worst[tensor].reason}'
            for tensor, names in self.failed.items()
        ]


def of_tolerance(row: TensorRow) -> float:
    """Return the error of a row over its tolerance, if it has one; infinity where nothing was compared."""
    if row.max_abs is None:
        return np.inf
    return row.max_abs / row.tolerance if row.tolerance else row.max_abs
