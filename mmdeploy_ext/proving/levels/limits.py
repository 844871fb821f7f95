"""What samples alone do not reach: more voxels and results than a model keeps, points on the range's edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections3d import Detections3D

LEAST_GAP = 1e-4
"""Between the scores of the last result that is kept and the first one that is not: rounding is far below."""


def limit_between(found: Detections3D, groups: np.ndarray) -> int:
    """Return a limit that cuts some of a sample's results off, between scores that rounding does not mix.

    The results are as many as the model's own limit lets through, in groups (n,) for each of which a limit
    holds. 0 where no number will do.
    """
    ordered = [-np.sort(-found.scores[groups == group]) for group in np.unique(groups)]
    longest = max(map(len, ordered), default=0)
    best, chosen = LEAST_GAP, 0
    for limit in range(max(longest // 4, 1), longest):
        gaps = [scores[limit - 1] - scores[limit] for scores in ordered if len(scores) > limit]
        if min(gaps) > best:
            best, chosen = float(min(gaps)), limit
    return chosen
