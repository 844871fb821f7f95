"""Judgement of all cases of a proof together: whether enough was matched, and not too much had no partner."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.proving.results import Case, DetectionRow

MIN_MATCHED = 10
"""Minimum number of matched results in a whole proof; fewer may be chance.

Measured on demo/toy.jpg: 14 to 300 per input with the toys, 100 to 300 with seeded full-size models.
"""
MIN_INPUTS = 3
"""Minimum number of inputs (frames, sweeps) with a matched result; all inputs if there are fewer."""
MAX_LOW_ALONE_SHARE = 0.005
"""Largest share of results below the score threshold of level 3 that may lack a partner."""
ALLOWED_LOW_ALONE = 2
"""Number of such results that may always lack a partner: on each side one whose partner is just below the
threshold of its list, or behind its cut."""
MAX_ALONE_SHARE = 0.005
"""Largest share of the results, of all inputs end to end, that may lack a partner on either side.

Engines round differently, and a decision that depends on it changes a result on either side. The rest of the
proof does not depend on it: tensors are compared, and results by the file's own tensors are, one to one.
"""
ALLOWED_ALONE = 2
"""Number of results of each side that may always lack a partner."""
ADVICE_FOR_IMAGES = (
    'use images with objects that this model finds (--input-img, --test-img, --images), and a trained '
    'checkpoint'
)


def too_few(matched: Sequence[int], unit: str, advice: str) -> list[str]:
    """Return why these numbers of matched results are no proof; [] if they are enough.

    Args:
        matched: number of matched results of each input.
        unit: name of an input: 'input', 'frame', 'sweep'.
        advice: what the user can do.
    """
    total, inputs_with_results = sum(matched), sum(count > 0 for count in matched)
    needed_inputs = min(MIN_INPUTS, len(matched))
    if total >= MIN_MATCHED and inputs_with_results >= needed_inputs:
        return []
    return [
        f'only {total} results were matched, in {inputs_with_results} of {len(matched)} {unit}s; a '
        f'proof wants {MIN_MATCHED} or more, in {needed_inputs} or more: {advice}'
    ]


def accept_few_alone(
    cases: Sequence[Case], share: float = MAX_ALONE_SHARE
) -> tuple[list[Case], list[str]]:
    """Let rows of results pass if over all cases few results have no partner end to end.

    Args:
        cases: all cases of a proof in float32; rows that could not be compared fail as before, and so do
            those by the file's own tensors.
        share: largest share of the results of PyTorch, if the file's own tensors give the file's results one
            to one in every case; else it is `MAX_ALONE_SHARE`.

    Returns:
        The cases, and a line for each result without a partner that is accepted; the unchanged cases and []
        if there are too many, or none.
    """
    lines: list[str] = []
    found = [case for case in cases if case.detections]
    if not all(case.substituted and all(row.passed for row in case.substituted) for case in found):
        share = min(share, MAX_ALONE_SHARE)
    for field, largest in (('detections', share), ('inner', MAX_ALONE_SHARE)):
        rows = [row for case in cases for row in getattr(case, field) if not row.broken]
        missing, extra, outside, total = (
            sum(getattr(row, key) for row in rows) for key in ('missing', 'extra', 'outside', 'reference')
        )
        alone = max(missing, extra) + outside
        if not alone or alone > max(ALLOWED_ALONE, largest * total):
            continue
        for case in cases:
            lines += [f'{case.name}: {line}' for row in getattr(case, field) for line in row.alone]
        accepted = [tuple(map(_accepted, getattr(case, field))) for case in cases]
        cases = [
            dataclasses.replace(case, **{field: rows})
            for case, rows in zip(cases, accepted, strict=True)
        ]
    return list(cases), lines


def _accepted(row: DetectionRow) -> DetectionRow:
    """Return a row that passes if nothing but results without a partner is wrong with it."""
    is_alone = not row.broken and (row.missing or row.extra or row.outside)
    return dataclasses.replace(row, passed=True) if is_alone else row


def total_reasons(
    cases: Sequence[Case],
    precision: str = 'fp32',
    unit: str = 'input',
    found_in: str = 'image',
    advice: str = ADVICE_FOR_IMAGES,
) -> list[str]:
    """Return why a proof fails beyond single cases; [] if it does not.

    Nothing was compared or found; or, if no case failed, too little was matched, or, in float32, too many
    below the score threshold have no partner.

    Args:
        cases: all cases of the proof.
        precision: 'fp32', 'fp16', 'bf16' or 'int8', by whose bars the cases were judged.
        unit: name of one input in messages.
        found_in: name of an input with results in messages.
        advice: what the user can do if too few results were matched.
    """
    rows = [row for case in cases for row in case.detections]
    if not rows and not any(case.tensors for case in cases):
        return ['nothing was compared']
    if rows and not sum(row.reference for row in rows):
        return [f'nothing was found in any {found_in}, so nothing was matched: {advice}']
    if not rows or not all(case.passed for case in cases):  # failed cases say more of what is wrong
        return []
    reasons = too_few([sum(row.matched for row in case.detections) for case in cases], unit, advice)
    if precision == 'fp32':
        reasons += lone_low_results(sum(row.low for row in rows), sum(row.low_alone for row in rows))
    return reasons


def lone_low_results(low: int, alone: int) -> list[str]:
    """Return why results below the score threshold fail a proof: too many have no partner; else [].

    Args:
        low: number of results of both sides below the score threshold of level 3, see `DetectionRow.low`.
        alone: number of those without a partner on the other side.
    """
    if alone <= max(ALLOWED_LOW_ALONE, MAX_LOW_ALONE_SHARE * low):
        return []
    return [
        f'{alone} of {low} results below the score threshold have no partner on the other side, which is '
        f'more than {100 * MAX_LOW_ALONE_SHARE:g} %'
    ]
