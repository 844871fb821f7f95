"""What level 4 keeps of the tensors of a drive: their errors by frame, the worst row of each, faults."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmdeploy_ext.compare.rows import TensorRow


class Faults:
    """Counts what went wrong by kind and keeps the first of each: a broken engine fails at every frame."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.count: dict[str, int] = {}

    def add(self, kind: str, where: str) -> None:
        """Note a fault at a frame."""
        self.first.setdefault(kind, where)
        self.count[kind] = self.count.get(kind, 0) + 1

    def reasons(self) -> list[str]:
        """Return one sentence per kind."""
        return [
            f'{kind}, first at {self.first[kind]}' + (f' ({count} frames)' if count > 1 else '')
            for kind, count in self.count.items()
        ]


class WorstRows:
    """The worst row of every tensor, and its error at every frame.

    Attributes:
        worst: tensor -> its worst row, `at` its frame; the histograms add up.
        failed: tensor -> frames at which it fails.
        series: `errors` and `ratios` (the same over its tolerance), by tensor, one entry per frame.
    """

    def __init__(self, free: bool, cosine: float | None) -> None:
        """Keep how rows are judged.

        Args:
            free: only rows that cannot be compared fail.
            cosine: judge by the cosine, not by the tolerances; None does not.
        """
        self.free, self.cosine = free, cosine
        self.worst: dict[str, TensorRow] = {}
        self.failed: dict[str, list[str]] = {}
        self.series: dict[str, dict[str, list[float | None]]] = dict(errors={}, ratios={})

    def keep(self, row: TensorRow, name: str, count: int) -> None:
        """Judge one row.

        Args:
            row: of the tensor.
            name: of the frame.
            count: frames so far, with this one.
        """
        passed = self._judge(row)
        for key, value in (('errors', row.max_abs), ('ratios', _ratio(row))):
            values = self.series[key].setdefault(row.tensor, [])
            values += [None] * (count - 1 - len(values))
            values.append(value)
        if not passed:
            self.failed.setdefault(row.tensor, []).append(name)
        reason = '' if passed else row.reason or f'cosine {row.cosine:.6f} below {self.cosine}'
        row = dataclasses.replace(row, passed=passed, reason=reason, at=name)
        known = self.worst.get(row.tensor)
        if known is not None:
            worse = (not row.passed, _badness(row)) > (not known.passed, _badness(known))
            histogram = _added(known.histogram, row.histogram)
            row = dataclasses.replace(row if worse else known, histogram=histogram)
        self.worst[row.tensor] = row

    def _judge(self, row: TensorRow) -> bool:
        if row.max_abs is None:
            return False
        if self.free or self.cosine is None:
            return row.passed or self.free
        return row.cosine is not None and row.cosine >= self.cosine

    def reasons(self, frames: int) -> list[str]:
        """Return one sentence per tensor that fails.

        Args:
            frames: that ran.
        """
        return [
            f'{tensor}: {len(names)} of {frames} frames fail, first {names[0]}; worst '
            f'{self.worst[tensor].at}: {self.worst[tensor].reason}'
            for tensor, names in self.failed.items()
        ]


def _ratio(row: TensorRow) -> float | None:
    return None if row.max_abs is None or not row.tolerance else row.max_abs / row.tolerance


def _badness(row: TensorRow) -> float:
    ratio = _ratio(row)
    return np.inf if row.max_abs is None else row.max_abs if ratio is None else ratio


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not one or not other:
        return one or other
    return tuple(left + right for left, right in zip(one, other, strict=True))
