"""What single cases of a proof cannot tell: whether enough was matched, and what only adds up over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.proving.results import Case

MATCHED_LEAST = 10
"""Results of the reference, in a whole proof, that have to be matched: one is there on both sides by luck.

Measured on demo/toy.jpg: 14 to 300 per input with the toys, 100 to 300 with seeded full-size models.
"""
MATCHED_IN = 3
"""Inputs (frames, sweeps) that they have to be in, or all where there are fewer."""
AGAIN = ', run again'
"""What the name of a case ends with whose outputs were not those of the first run, bit for bit."""
LOW_ALONE = 0.005
"""Results below the score threshold of level 3 that may be without a partner, of all of them in a proof."""
LOW_ALONE_LEAST = 2
"""As many may always: one on each side that the other has just below its threshold, or behind its cut."""
TIES = 0.01
"""Results that may be excused since rounding decides of them, of all in a proof: more are a fault.

Those of both sides are counted, of the reference's. Measured of mmdet's configs with seeded weights: 2 of
1000 in one of 130 proofs; of Mask R-CNN with HRNet-W32 6 of 500 in five pictures, 6 of 1479 in fifteen.
"""
TIES_LEAST = 4
"""As many may always: two decisions, each with one on either side."""
ASKED = 0.1
"""Share of both sides' results of one input that may be alone for PyTorch to be asked what rounding decides.

To ask is to run the model eight times or more, and `TIES` would not excuse so many: a fifth of the results of
one input is 1 % of the results of 20 such inputs.
"""
ASKED_LEAST = 20
"""For as many it is always asked: `TIES` of 2000 results, more than most proofs have."""
IMAGES = (
    'use images with objects that this model finds (--input-img, --test-img, --images), and a trained '
    'checkpoint'
)


def too_few(matched: Sequence[int], what: str, advice: str) -> list[str]:
    """Return why so many matched results per input are no proof, or nothing.

    `what` is what an input is called: 'input', 'frame', 'sweep'; `advice` is what to do.
    """
    total, places = sum(matched), sum(count > 0 for count in matched)
    wanted = min(MATCHED_IN, len(matched))
    if total >= MATCHED_LEAST and places >= wanted:
        return []
    return [
        f'only {total} results were matched, in {places} of {len(matched)} {what}s; a proof wants '
        f'{MATCHED_LEAST} or more, in {wanted} or more: {advice}'
    ]


def ties_of(cases: Sequence[Case]) -> tuple[int, int]:
    """Return how many results were excused as ties, of both sides, and how many the reference has."""
    rows = [row for case in cases for row in case.detections]
    return sum(row.ties for row in rows), sum(row.reference for row in rows)


def too_many_ties(cases: Sequence[Case]) -> bool:
    """Return whether more results were excused than rounding explains; see `TIES`."""
    ties, total = ties_of(cases)
    return ties > max(TIES_LEAST, TIES * total)


def excused_ties(cases: Sequence[Case]) -> list[str]:
    """Return why so many excused results are no proof, or nothing."""
    ties, total = ties_of(cases)
    if not too_many_ties(cases):
        return []
    why = 'results have no partner but a suppression near its threshold, which is more than'
    return [f'{ties} {why} {100 * TIES:g} % of {total}']


def whole_reasons(
    cases: Sequence[Case],
    precision: str = 'fp32',
    unit: str = 'input',
    found_in: str = 'image',
    advice: str = IMAGES,
) -> list[str]:
    """Return why a proof fails beyond single rows: nothing compared, too little matched.

    The precision is that whose bars the cases were judged by; the words are those of `Proof`.
    """
    detections = [row for case in cases for row in case.detections]
    if not detections and not any(case.tensors for case in cases):
        return ['nothing was compared']
    if detections and not sum(row.reference for row in detections):
        return [f'nothing was found in any {found_in}, so nothing was matched: {advice}']
    if not detections or not all(case.passed for case in cases):  # failed cases say more of what is wrong
        return []
    first = [case for case in cases if not case.name.endswith(AGAIN)]
    reasons = too_few([sum(row.matched for row in case.detections) for case in first], unit, advice)
    reasons += excused_ties(cases)
    low, alone = (sum(getattr(row, name) for row in detections) for name in ('low', 'low_alone'))
    return reasons + (lone_low_results(low, alone) if precision == 'fp32' else [])


def lone_low_results(low: int, alone: int) -> list[str]:
    """Return why so many results below the score threshold without a partner are no proof, or nothing.

    `low` results of both sides are below the threshold of level 3, `alone` of them match none of the other
    side's.
    """
    if alone <= max(LOW_ALONE_LEAST, LOW_ALONE * low):
        return []
    why = 'results below the score threshold have no partner on the other side, which is more than'
    return [f'{alone} of {low} {why} {100 * LOW_ALONE:g} %']
