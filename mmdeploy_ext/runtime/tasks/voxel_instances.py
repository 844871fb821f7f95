"""Instances of voxels: their centres are matched by class and place, then each voxel by its centre.

Rounding may decide which cells are centres, the voxel of a centre, and which of two centres is nearer. The
reference alone says where: by `Instances.sure` and `Instances.cells`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.occupancy import Instances, Occupancy

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
