"""Rows of several outputs that belong together, such as boxes, scores and labels, brought into one order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.tasks.matching import maximum_matching

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_WIDTH = 64
"""Outputs with longer rows, such as masks, are not used to recognise rows; they follow the others.

If all outputs are that wide, the rows stay in their order.
"""


def in_order_of(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    names: Sequence[str],
    rtol: float,
    atol: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Return outputs whose rows are in the order of the reference's, if each row has an equal partner.

    Args:
        reference: output -> array (R, ...).
        outputs: output -> array (R, ...) of numbers or booleans.
        names: names of the outputs whose rows belong together; the others stay as they are.
        rtol: allowed difference of two equal rows, relative to the largest value of an output in the
            reference; outputs that are no floats have to be equal.
        atol: output of floats -> difference that is allowed however small its values are; None: 0 for all.

    Returns:
        The outputs as they are if their numbers of rows differ, one of `names` is absent, a row has no
        partner (as one with NaN), or the rows are in order already.
    """
    counts = {side[name].shape[:1] for side in (reference, outputs) for name in names if name in side}
    if len(counts) != 1 or any(name not in outputs or name not in reference for name in names):
        return dict(outputs)
    (count,) = counts.pop() or (0,)
    if count == 0:
        return dict(outputs)
    allowed, nearness, has_narrow = np.ones((count, count), bool), np.zeros((count, count)), False
    for name in names:
        expected, got = (side[name].reshape(count, -1).astype(np.float64) for side in (reference, outputs))
        if expected.shape != got.shape or expected.shape[1] > MAX_WIDTH:
            continue
        has_narrow = True
        distance = np.zeros((count, count))
        for column in range(expected.shape[1]):  # all columns at once would be gigabytes
            np.maximum(distance, np.abs(np.subtract.outer(expected[:, column], got[:, column])), distance)
        scale = float(np.abs(expected).max(initial=0))
        tolerance = max(rtol * scale, (atol or {}).get(name, 0.0))
        allowed &= distance <= (tolerance if reference[name].dtype.kind == 'f' else 0)
        nearness -= distance / (scale or 1.0)
    if not has_narrow or allowed.diagonal().all():  # equal rows may be several: their order stays
        return dict(outputs)
    partners = maximum_matching(allowed, nearness, np.zeros(count))
    if len(partners) < count:
        return dict(outputs)
    order = [partners[row] for row in range(count)]
    return {name: array[order] if name in names else array for name, array in outputs.items()}
