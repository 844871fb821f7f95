"""Judgement of all cases of a proof together: whether enough was matched, and not too much excused.

A tie is a result without a partner on the other side that is excused, because PyTorch itself has it, or lacks
it, with other rounding, see `near_ties.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.proving.results import Case

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
MAX_TIES_SHARE = 0.01
"""Largest share of results that may be excused since rounding decides about them; more are a fault.

The excused results of both sides are counted, and divided by the results of the reference that are not below
the score threshold. Measured with
mmdet's configs and seeded weights: 2 of 1000 in one of 130 proofs; with Mask R-CNN with HRNet-W32 6 of 500 in
five pictures, 6 of 1479 in fifteen.
"""
ALLOWED_TIES = 4
"""Number of results that may always be excused: two decisions, each with a result on either side."""
MAX_UNPAIRED_SHARE = 0.1
"""Largest share of both sides' results of one input without a partner that PyTorch is run again for.

With other rounding it may explain them. Where one decision of rounding may move all results, see `ranked` of
`matching.match_lists`, it is run again for any share. That means running the model eight times or more, and
`MAX_TIES_SHARE` would not excuse so many: a fifth of the results of one input is 1 % of the results of 20
such inputs.
"""
ALLOWED_UNPAIRED = 20
"""Number of results without a partner for which PyTorch is always run again: `MAX_TIES_SHARE` of 2000
results, more than most proofs have."""
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


def count_ties(cases: Sequence[Case]) -> tuple[int, int]:
    """Return how many results of both sides were excused as ties, and how many results the reference has.

    The latter are those that are not below the score threshold of level 3.
    """
    rows = [row for case in cases for row in case.detections]
    return sum(row.ties for row in rows), sum(row.reference for row in rows)


def too_many_ties(cases: Sequence[Case]) -> bool:
    """Return whether more results were excused than rounding explains; see `MAX_TIES_SHARE`."""
    ties, total = count_ties(cases)
    return ties > max(ALLOWED_TIES, MAX_TIES_SHARE * total)


def tie_reasons(cases: Sequence[Case]) -> list[str]:
    """Return why the number of excused results is too large for a proof; [] if it is not."""
    ties, total = count_ties(cases)
    if not too_many_ties(cases):
        return []
    return [
        f'{ties} results have no partner but a suppression near its threshold, which is more than '
        f'{100 * MAX_TIES_SHARE:g} % of {total}'
    ]


def total_reasons(
    cases: Sequence[Case],
    precision: str = 'fp32',
    unit: str = 'input',
    found_in: str = 'image',
    advice: str = ADVICE_FOR_IMAGES,
) -> list[str]:
    """Return why a proof fails beyond single cases; [] if it does not.

    Nothing was compared or found; or, if no case failed, too little was matched, too many results are ties,
    or, in float32, too many below the score threshold have no partner.

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
    reasons += tie_reasons(cases)
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
