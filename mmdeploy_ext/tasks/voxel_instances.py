"""Instances of voxels: their centres are matched by class and place, then each voxel by its centre."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.occupancy import Instances, Occupancy

PLACE_BAR, SCORE_BAR = 1e-3, 1e-4
"""Largest differences of a pair of centres, metres and score."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """How two grids differ in their instances.

    Attributes:
        wrong, excused: voxels of one class on both sides and of other instances, (X, Y, Z) bool; excused are
            those that are as near to both centres, and those of a centre at the threshold.
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
    row_of = partners(ours, theirs)
    lonely = np.setdiff1d(np.arange(len(theirs.scores)), row_of)
    scores = np.concatenate([ours.scores[row_of < 0], theirs.scores[lonely]])
    alone = tuple(
        f'a centre of score {score:.4f} has no partner'
        for score in scores.tolist()
        if abs(score - ours.floor) > SCORE_BAR
    )
    expected = np.where(ours.rows < 0, -1, np.append(row_of, -1)[ours.rows])
    other = (reference.labels == candidate.labels) & (expected != theirs.rows)
    excused = other & (not alone) & ((ours.rows >= 0) & (expected < 0) | np.isin(theirs.rows, lonely))
    both = other & (expected >= 0) & (theirs.rows >= 0)
    voxels = np.argwhere(both)
    taken, left = (((voxels - theirs.cells[rows[both]]) ** 2).sum(-1) for rows in (theirs.rows, expected))
    excused[both] |= taken <= left
    return Differences(other & ~excused, excused, alone)
