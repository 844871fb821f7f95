"""Limits that no input of a proof reached: a fault of such a limit does not show in the proof's results.

The test suite looks for such faults, with lowered and raised limits for each kind of head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.panoptic import Segments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.preprocess.points import VoxelRule
    from mmdeploy_ext.proving.results import Case

COUNTERS = dict(max_candidates='candidates', max_proposals='proposal_candidates')
"""Name of a limit -> output of a file that counts what it limits, for each image."""


def counts_of_images(results: Sequence[Any], outputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return name of a limit -> the most of what it limits that an image of an input has.

    Segments of a panoptic map are not counted: only those of things are limited.

    Args:
        results: PyTorch's results of each image.
        outputs: outputs of the file by name.
    """
    counts = {name: int(outputs[counter].max()) for name, counter in COUNTERS.items() if counter in outputs}
    if not any(isinstance(result, Segments) for result in results):
        counts['max_per_img'] = max(map(len, results))
    return counts


def count_voxels(points: np.ndarray, rule: VoxelRule) -> int:
    """Return how many voxels a sweep has without their limit; `points` (P, 3 or more) are xyz in metres."""
    low, size = np.float32(rule.point_cloud_range[:3]), np.float32(rule.voxel_size)
    cells = np.floor((points[:, :3].astype(np.float32) - low) / size).astype(np.int64)
    cells = cells[((cells >= 0) & (cells < rule.grid_size)).all(1)]
    return len(np.unique(np.ravel_multi_index(tuple(cells.T), rule.grid_size)))


def unreached(limits: Mapping[str, Any], cases: Sequence[Case], samples: str) -> list[str]:
    """Return a line for each limit that no case reached, with the most that any of them had.

    Args:
        limits: name -> limit, among other facts; those that no case has counted are left out.
        cases: all cases of the proof.
        samples: option by which the user gives other samples.
    """
    lines = []
    for name, limit in limits.items():
        counts = [case.counts[name] for case in cases if name in case.counts]
        if counts and type(limit) is int and max(counts) < limit:
            lines.append(
                f'{name} {limit} (most found {max(counts)}): reach it with {samples}, or lower it by '
                f'--cfg-options on both sides'
            )
    return lines
