"""Calibration and fidelity of a loaded model: from its config's points to ranges of its sparse graph."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mmdeploy_ext.exporting.sparse_backbone import trace
from mmdeploy_ext.quantize import PERCENTILE
from mmdeploy_ext.quantize.calibrate import before_folding, calibrate_sweeps
from mmdeploy_ext.quantize.sweeps import Sweeps, point_rule
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.ranges import Ranges, from_amax

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.families.sparse import SparseFamily

SWAPPED = [0, 3, 2, 1]
"""Columns of coordinates in the other order."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How ranges are found.

    Attributes:
        method: of inputs, one of `quantize.METHODS`.
        percentile: for the method of that name.
        add_method: of additions; '' takes `method`, None what the family's reference has.
        batches: sweeps, evenly over the source; 0 takes all.
        unfolded: modules whose weight ranges are those of the kernel before batch normalisation is folded
            into it; None: those of the family's reference where `int8_fp16_io`, else none.
        half: round all ranges to fp16; None: as the family's reference.
        root: folder of the data set, or ''.
        int8_fp16_io: the file will have the precisions of the family's reference.
    """

    method: str = 'mse'
    percentile: float = PERCENTILE
    add_method: str | None = None
    batches: int = 0
    unfolded: tuple[str, ...] | None = None
    half: bool | None = None
    root: str = ''
    int8_fp16_io: bool = False

    def resolved(self, family: SparseFamily) -> Calibration:
        """Fill in what is None."""
        reference = family.int8
        unfolded = reference.unfolded_ranges if self.int8_fp16_io else ()
        filled = dict(add_method=reference.add_method, unfolded=unfolded, half=reference.half_ranges)
        missing = {name: value for name, value in filled.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


def sweeps_of(
    deployment: Deployment, source: str | Path, order: str, limit: int = 0, root: str = ''
) -> Sweeps:
    """Return the voxels of a source's sweeps, as the config loads and voxelises them; see `Sweeps`."""
    from mmdeploy_ext.preprocess.points import voxelise

    def voxels(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, coordinates = voxelise(points, deployment.rule)
        return features, coordinates if deployment.rule.order == order else coordinates[:, SWAPPED]

    rule = point_rule(deployment.cfg, deployment.settings.in_channels)
    return Sweeps(source, voxels, rule, root or None, limit, order)


def calibrate(deployment: Deployment, source: str | Path, how: Calibration) -> Ranges:
    """Measure ranges on a folder or infos file; see `Sweeps`, `calibrate_sweeps` and `before_folding`."""
    how, traced = how.resolved(deployment.family), trace(deployment)
    graph = fold(traced, 'fp32')
    ranges = calibrate_sweeps(
        graph,
        sweeps_of(deployment, source, graph.order, how.batches, how.root),
        how.method,
        percentile=how.percentile,
        add_method=how.add_method or None,
        unfolded=before_folding(traced, graph, how.unfolded),
        source=str(source),
        checkpoint_sha256=deployment.checkpoint_sha256,
    )
    return ranges.half() if how.half else ranges


def from_checkpoint(deployment: Deployment, half: bool | None = None) -> Ranges | None:
    """Return the ranges that the checkpoint itself holds (NVIDIA's PTQ files), None where it holds none.

    That some are missing is a UsageError.
    """
    if not deployment.report.ranges:
        return None
    graph = fold(trace(deployment), 'fp32')
    ranges = from_amax(graph, deployment.report.ranges, deployment.checkpoint, deployment.checkpoint_sha256)
    ranges.check(graph)
    return ranges.half() if Calibration(half=half).resolved(deployment.family).half else ranges
