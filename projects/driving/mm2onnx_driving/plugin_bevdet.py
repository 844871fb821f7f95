"""The plug-ins of BEVDet's TensorRT deployments, in numpy.

Sources, behaviour in own words: HuangJunJie2017/BEVDet f71858d, ops/bev_pool_v2; LCH1238/bevdet-tensorrt-cpp
e6e2cff (branch one) and its copy autowarefoundation/bevdet_vendor c93c876, the four `*_plugin.cu`.

Glossary: N cameras, D depth bins, h, w feature map, A frames before, C channels, Y, X rows and columns of the
view.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.common.runtime.lift_splat import LiftOnnx, frustum_places
from mm2onnx_driving.plugin_kernels import bilinear
from mmdeploy_ext.engines.plugins import open_with_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm2onnx_driving.common.runtime.lift_splat import LiftFacts
    from mmdeploy_ext.runtime.frames import Frame, StreamState


POOL = 'bev_pool_v2'
"""Name of the plug-in in the domain `mmdeploy`."""


def pool(
    depth: np.ndarray,
    features: np.ndarray,
    ranks_depth: np.ndarray,
    ranks_feat: np.ndarray,
    ranks_bev: np.ndarray,
    interval_starts: np.ndarray,
    interval_lengths: np.ndarray,
    out_height: int,
    out_width: int,
) -> np.ndarray:
    """Return the sums (1, Y, X, C) float32 of depth (N, D, h, w) times features (N, h, w, C) per interval.

    The tables come from `tables.intervals`.
    """
    rows = features.reshape(-1, features.shape[-1])
    values = depth.ravel()[ranks_depth, None] * rows[ranks_feat]
    view = np.zeros((out_height * out_width, rows.shape[1]), np.float32)
    ends = np.stack([interval_starts, interval_starts + interval_lengths], 1).ravel()
    padded = np.concatenate([values, np.zeros_like(values[:1])])
    view[ranks_bev[interval_starts]] = np.add.reduceat(padded, ends)[::2]
    return view.reshape(1, out_height, out_width, -1)


def sampled_places(size: int, source: int, crop: int, scale: float) -> np.ndarray:
    """Return the rows, or columns, of a picture as taken that the plug-in reads: the nearest ones.

    Args:
        size: number of the network's rows, or columns.
        source: number of the picture's, which no place may reach.
        crop: of the resized picture that are cut off first.
        scale: network pixels per pixel of the picture.
    """
    places = np.arange(size, dtype=np.float32) / np.float32(scale) + np.float32(crop) / np.float32(scale)
    places = np.floor(places.astype(np.float64) + 0.5).astype(np.int64)
    return places[places < source]


def network_size(source: int, crop: int, scale: float) -> int:
    """Return the number of the network's rows, or columns, that the plug-in makes of `source`."""
    return int(np.float32(source) * np.float32(scale) - np.float32(crop))


def packed(pixels: np.ndarray) -> np.ndarray:
    """Return planes (N, 3, H, W) uint8 as (N, 3, H, W / 4) int32, the first pixel in the lowest byte."""
    return np.ascontiguousarray(pixels).view('<i4')


def preprocess(
    images: np.ndarray, mean: np.ndarray, std: np.ndarray, crop_h: int, crop_w: int, resize_radio: float
) -> np.ndarray:
    """Return the network's pictures (N, 3, H, W) float32 of `packed` ones."""
    pixels = np.ascontiguousarray(images).view(np.uint8)
    axes = []
    for count, crop in zip(pixels.shape[2:], (crop_h, crop_w), strict=True):
        size = network_size(count, crop, resize_radio)
        axes.append(sampled_places(size, count, crop, resize_radio))
    chosen = pixels[:, :, axes[0][:, None], axes[1]].astype(np.float32)
    return (chosen - mean[:, None, None]) / std[:, None, None]


def pool_first(
    depth: np.ndarray, features: np.ndarray, *tables: np.ndarray, bev_h: int, bev_w: int, n: int
) -> np.ndarray:
    """Return the view (1, C, Y, X) of depth (N, D, h, w) and features (N, C, h, w); `n` is N.

    A cell without points is 0 here. The plug-in does not write such a cell.
    """
    return pool(depth, features.transpose(0, 2, 3, 1), *tables, bev_h, bev_w).transpose(0, 3, 1, 2)


def align(adj_feats: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Return moved views (1, A, C, Y, X); `transforms` (1, A, 6): (2, 3), cell (x, y, 1) to source cell."""
    rows, columns = adj_feats.shape[-2:]
    cells = np.stack([*np.meshgrid(np.arange(columns), np.arange(rows)), np.ones((rows, columns))], -1)
    moved = []
    for view, transform in zip(adj_feats[0], transforms[0], strict=True):
        places = np.float32(cells) @ transform.reshape(2, 3).T
        moved.append(bilinear(view.transpose(1, 2, 0), places).transpose(2, 0, 1))
    return np.stack(moved)[None].astype(np.float32)


def gather(adj: np.ndarray, curr: np.ndarray, flag: np.ndarray) -> np.ndarray:
    """Return the present view (1, C, Y, X), then A more: those of `adj`, or with flag 0 the present one."""
    before = adj if flag.item() else np.broadcast_to(curr[:, None], adj.shape)
    return np.concatenate([curr[:, None], before], 1).reshape(1, -1, *curr.shape[2:])


PREPROCESS, POOL_FIRST, ALIGN, GATHER = 'Preprocess', 'BEVPool', 'AlignBEV', 'GatherBEV'
"""Names of bevdet-tensorrt-cpp's plug-ins in the domain `bevdet`."""
KERNELS = {POOL: pool, PREPROCESS: preprocess, POOL_FIRST: pool_first, ALIGN: align, GATHER: gather}


# The intervals of a rig, by which BEVDet's plug-in adds up points, in numpy.
#
# Source: HuangJunJie2017/BEVDet f71858d, necks/view_transformer.py:84-260 (behaviour in own words).
#
# Glossary: N cameras, D depth bins, h, w cells of a feature map, M points in the grid, I cells with points.


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
