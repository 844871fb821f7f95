"""Occupancy: compared by class, and instance, per voxel; results are voxels that are not free."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.spec.matching import too_many_ties
from mmdeploy_ext.spec.results import Bars, DetectionRow, Pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.occupancy import Instances, Occupancy


# Instances of voxels: their centres are matched by class and place, then each voxel by its centre.
#
# Rounding may decide which cells are centres, the voxel of a centre, and which of two centres is nearer. The
# reference alone says where: by `Instances.sure` and `Instances.cells`.


PLACE_BAR, SCORE_BAR = 1e-3, 1e-4
"""Largest differences of a pair of centres, metres and score."""
UNKNOWN, NO_LABEL = -2, -1
"""Row of a voxel whose centre has no partner, and label without a centre."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """How two grids differ in their instances.

    Attributes:
        wrong, excused: voxels of one class on both sides and of other instances, (X, Y, Z) bool; for the
            excused ones rounding decides between both instances.
        alone: sentences about centres without a partner.
    """

    wrong: np.ndarray
    excused: np.ndarray
    alone: tuple[str, ...]


def partners(reference: Instances, candidate: Instances) -> np.ndarray:
    """Return for each centre of the reference its row of the candidate, or -1."""
    rows = np.full(len(reference.scores), -1)
    free = np.ones(len(candidate.scores), bool)
    for row, (place, score, label) in enumerate(
        zip(reference.places, reference.scores, reference.labels, strict=True)
    ):
        gaps = np.abs(candidate.places - place).max(-1, initial=0)
        near = free & (candidate.labels == label) & (gaps <= PLACE_BAR)
        near &= np.abs(candidate.scores - score) <= SCORE_BAR
        if near.any():
            rows[row] = np.where(near, gaps, np.inf).argmin()
            free[rows[row]] = False
    return rows


def differences(reference: Occupancy, candidate: Occupancy) -> Differences:
    ours, theirs = reference.instances, candidate.instances
    sure = np.ones(len(ours.scores), bool) if ours.sure is None else ours.sure
    row_of = partners(ours, theirs)
    lonely = np.setdiff1d(np.arange(len(theirs.scores)), row_of)
    scores = np.concatenate([ours.scores[sure & (row_of < 0)], theirs.scores[lonely]])
    alone = tuple(f'a centre of score {score:.4f} has no partner' for score in scores.tolist())
    own_rows = np.full(len(theirs.scores) + 1, UNKNOWN)
    own_rows[row_of[row_of >= 0]] = np.flatnonzero(row_of >= 0)
    own_rows[-1] = -1  # of voxels without a centre
    got = own_rows[theirs.rows]
    other = (reference.labels == candidate.labels) & (got != ours.rows)
    excused = np.zeros_like(other)
    if ours.cells is not None:
        known = other & (got != UNKNOWN)
        excused[known] = is_tied(np.argwhere(known), ours.rows[known], got[known], ours, sure)
    return Differences(other & ~excused, excused, alone)


def is_tied(
    voxels: np.ndarray, expected: np.ndarray, got: np.ndarray, ours: Instances, sure: np.ndarray
) -> np.ndarray:
    """Return (V,) bool: rounding decides whether a voxel (V, 3) has the centre `expected` or `got`, (V,)."""
    labels = np.append(ours.labels, NO_LABEL)
    rows = np.where(expected >= 0, expected, got)
    tied = (got < 0) | (labels[got] == labels[rows])
    farthest = np.full(len(voxels), np.inf)  # the nearest sure centre of the class is not farther
    for row in np.flatnonzero(sure):
        of_class = labels[rows] == labels[row]
        low, high = ours.cells[row]
        apart = np.maximum(voxels[of_class] - low, high - voxels[of_class])
        farthest[of_class] = np.minimum(farthest[of_class], (apart**2).sum(-1))
    for chosen in (expected, got):
        low, high = ours.cells[chosen].swapaxes(0, 1)
        apart = np.maximum(np.maximum(low - voxels, voxels - high), 0)
        least = np.where(chosen >= 0, (apart**2).sum(-1), np.inf)
        tied &= least <= farthest
    return tied


RESULTS, PLACE = 'voxels', 'worst IoU'
MATCH_RATE = 1.0
"""Required share of correct results in float32."""
TIE = 1e-4
"""A voxel may change class up to this lead of PyTorch's best class over the second."""


def half_bars(bars: Bars) -> dict[str, float]:
    return {}


def half_text(bars: Bars) -> str:
    return 'the same class'


def problem(reference: Occupancy, candidate: Occupancy) -> str:
    if reference.labels.shape != candidate.labels.shape:
        return f'voxels: got {candidate.labels.shape}, expected {reference.labels.shape}'
    if reference.instances is not None and candidate.instances is None:
        return 'voxels: got no instances'
    return ''


def class_ious(reference: Occupancy, candidate: Occupancy) -> dict[int, float]:
    """Return class -> IoU of its voxels, for classes of either side."""
    return {
        label: float(np.mean(ours[ours | theirs] == theirs[ours | theirs]))
        for label in np.union1d(reference.labels, candidate.labels).tolist()
        for ours, theirs in [(reference.labels == label, candidate.labels == label)]
    }


def differing(reference: Occupancy, candidate: Occupancy) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of another class, without ties, and the voxels at a tie, (X, Y, Z) bool."""
    other = reference.labels != candidate.labels
    tied = other & (reference.leads <= TIE)
    return other & ~tied, tied


def match_detections(image: str, reference: Occupancy, candidate: Occupancy, **unused: Any) -> DetectionRow:
    """Compare two grids voxel by voxel; `reference` has leads."""
    if why := problem(reference, candidate):
        counts = len(reference), 0, len(reference), len(candidate)
        return DetectionRow(image, *counts, 0.0, 1.0, False, why, broken=True)
    wrong, tied = differing(reference, candidate)
    is_free, candidate_is_free = (side.labels == side.free for side in (reference, candidate))
    missing, extra = int((wrong & candidate_is_free).sum()), int((wrong & is_free).sum())
    outside = int(wrong.sum()) - missing - extra
    ious = class_ious(reference, candidate)
    equal = 1 - wrong.mean() - tied.mean()
    reason = lines = ''
    if wrong.any():
        lines = ', '.join(f'class {label}: IoU {iou:.6f}' for label, iou in ious.items() if iou < 1)
        reason = f'{int(wrong.sum())} voxels have another class ({100 * equal:.4f} % equal; {lines})'
    leads = reference.leads[wrong]
    count, lonely = int(tied.sum()), ()
    if reference.instances is not None:
        others = differences(reference, candidate)
        outside += (wrong_instances := int(others.wrong.sum()))
        reasons = [reason] if reason else []
        reasons += [f'{wrong_instances} voxels belong to another instance'] if wrong_instances else []
        reason, lonely = ', '.join([*reasons, *others.alone]), others.alone
        count += int(others.excused.sum())
    too_many = too_many_ties(count, len(reference), RESULTS)
    reason = ', '.join(filter(None, [reason, too_many]))
    return DetectionRow(
        image,
        reference=len(reference),
        matched=len(reference) - missing - outside,
        missing=missing,
        extra=extra,
        worst_iou=min(ious.values()),
        worst_score=float(leads.max(initial=0.0)),
        passed=not reason,
        reason=reason,
        outside=outside,
        broken=bool(lonely or too_many),  # no rate excuses these
        alone=((lines,) if lines else ()) + lonely,
        excused=(f'{count} voxels',) if count else (),
    )


def fit_pair(pair: Pair) -> Pair:
    """Return the pair unchanged; `draw_pair` scales images."""
    return pair


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw the grids of both engines side by side; voxels of another class are white."""
    from mmdeploy_ext.runtime.occupancy import beside, grid_picture

    wrong = None if problem(pair.reference, pair.candidate) else differing(pair.reference, pair.candidate)[0]
    if wrong is not None and pair.reference.instances is not None:
        wrong = wrong | differences(pair.reference, pair.candidate).wrong
    sides = ('PyTorch', pair.reference), (pair.engine, pair.candidate)
    return beside(*(grid_picture(side, classes, title, marked=wrong) for title, side in sides))
