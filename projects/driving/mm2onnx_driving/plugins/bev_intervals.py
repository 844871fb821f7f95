"""The intervals of a rig, by which BEVDet's plug-in adds up points, in numpy.

Source: HuangJunJie2017/BEVDet f71858d, necks/view_transformer.py:84-260 (behaviour in own words).

Glossary: N cameras, D depth bins, h, w cells of a feature map, M points in the grid, I cells with points.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.common.runtime.lift_splat import LiftOnnx, frustum_places
from mm2onnx_driving.plugins.bevdet_kernels import KERNELS
from mmdeploy_ext.engines.plugins import open_with_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm2onnx_driving.common.runtime.lift_splat import LiftFacts
    from mmdeploy_ext.runtime.frames import Frame, StreamState


def point_cells(
    facts: LiftFacts, sensor2keyego: np.ndarray, intrinsics: np.ndarray, crop: np.ndarray
) -> np.ndarray:
    """Return the cell `y * X + x` of each point of the frustum, (N D h w,) int64; -1 outside of the grid.

    The arguments are those of `frustum_places`.
    """
    points = frustum_places(facts, sensor2keyego, intrinsics, crop)
    low, step = (np.float32(values)[:, None] for values in (facts.grid_low, facts.grid_step))
    cells = np.trunc((np.float32(points) - low) / step)
    inside = ((cells >= 0) & (cells < np.array(facts.grid_count)[:, None])).all(1)
    return np.where(inside, cells[:, 1] * facts.grid_count[0] + cells[:, 0], -1).astype(np.int64).ravel()


def intervals(facts: LiftFacts, cells: np.ndarray) -> dict[str, np.ndarray]:
    """Return the plug-in's tables, int32, points of a cell in the order of the frustum.

    `ranks_depth`, `ranks_feat`, `ranks_bev` (M,) index depth (N, D, h, w), features (N, h, w) and the grid;
    `interval_starts`, `interval_lengths` (I,) cut them into cells.
    """
    points = np.flatnonzero(cells >= 0)
    points = points[np.argsort(cells[points], kind='stable')]
    pixels = len(facts.rows) * len(facts.columns)
    ranks = cells[points]
    starts = np.flatnonzero(np.diff(ranks, prepend=-1))
    tables = dict(
        ranks_depth=points,
        ranks_feat=points // (len(facts.depths) * pixels) * pixels + points % pixels,
        ranks_bev=ranks,
        interval_starts=starts,
        interval_lengths=np.diff(starts, append=len(points)),
    )
    return {name: values.astype(np.int32) for name, values in tables.items()}


class PoolLoop(LiftOnnx):
    """A file with the plug-in as a stream; tables of a rig are kept until its calibration changes."""

    build = staticmethod(functools.partial(open_with_plugins, kernels=KERNELS))
    _rig: tuple[bytes, dict[str, np.ndarray]] = (b'', {})

    def feeds_of(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        return dict(img=frame.images, **self.rig_tables(super().feeds_of(frame, memory)))

    def rig_tables(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the plug-in's tables for the calibration among inputs of the portable graph."""
        matrices = feeds['sensor2keyego'], feeds['intrinsics']
        key = b''.join(matrix.tobytes() for matrix in matrices)
        if key != self._rig[0]:
            self._rig = key, self.tables(*matrices)
        return self._rig[1]

    def tables(self, sensor2keyego: np.ndarray, intrinsics: np.ndarray) -> dict[str, np.ndarray]:
        facts, crop = self.metadata.postprocess, self.rule.crop_matrix().astype(np.float64)
        return intervals(facts, point_cells(facts, sensor2keyego, intrinsics, crop))
