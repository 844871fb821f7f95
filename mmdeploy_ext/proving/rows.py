"""What a comparison of tensors found, as plain data."""

import dataclasses
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One column group of one output, ONNX against PyTorch (level 2).

    Attributes:
        tensor: output name; with the group's name where there are several.
        shape: of the reference, '1x80x76x76'.
        max_abs: largest absolute difference, in the unit of the tensor; None where nothing could be compared
            (as are the next three).
        max_rel: the same over the largest absolute reference value of the group; None also for a reference of
            zeros.
        cosine: of both tensors flattened.
        tolerance: the absolute difference that is allowed here.
        passed: finite, same shape and dtype, not empty, within tolerance.
        reason: why it failed; empty when passed.
        histogram: counts of log10(|difference| / scale) in bins of one decade from -12 to 0 (13 counts: the
            first one is "equal or below 1e-12").
        at: the frame that these figures are of, where a row stands for the worst of a sequence.
    """

    tensor: str
    shape: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    tolerance: float | None
    passed: bool
    reason: str = ''
    histogram: tuple[int, ...] = ()
    at: str = ''


def is_equal(rows: Collection[TensorRow]) -> bool:
    """Return whether every output passed; False when nothing was compared."""
    return bool(rows) and all(row.passed for row in rows)


def is_exact(rows: Collection[TensorRow]) -> bool:
    """Return whether every output is the same bit for bit; False when nothing was compared."""
    return is_equal(rows) and all(row.max_abs == 0 for row in rows)


def equality_claim(rows: Collection[TensorRow], inputs: int, claim: str = 'EQUAL') -> str:
    """Return `EQUAL ON N INPUTS` or `NOT EQUAL`: what a comparison says that does not involve PyTorch."""
    return f'{claim} ON {inputs} {"INPUTS" if inputs > 1 else "INPUT"}' if is_equal(rows) else f'NOT {claim}'
