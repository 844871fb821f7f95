"""Occupancy: compared by class, and instance, per voxel; results are voxels that are not free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.tasks import voxel_instances
from mmdeploy_ext.spec.results import DetectionRow
from mmdeploy_ext.spec.ties import too_many_ties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.occupancy import Occupancy
    from mmdeploy_ext.spec.bars import Bars
    from mmdeploy_ext.spec.results import Pair

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
        others = voxel_instances.differences(reference, candidate)
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
        wrong = wrong | voxel_instances.differences(pair.reference, pair.candidate).wrong
    sides = ('PyTorch', pair.reference), (pair.engine, pair.candidate)
    return beside(*(grid_picture(side, classes, title, marked=wrong) for title, side in sides))
