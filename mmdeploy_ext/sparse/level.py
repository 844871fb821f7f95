"""Active sites of one resolution, and their hash. Needs no torch. Glossary: N sites."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import PointsError
from mmdeploy_ext.inputs import voxel_hash
from mmdeploy_ext.inputs.voxel_hash import empty_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.sparse.ir import Triple


class Level:
    """Active sites of one resolution.

    Attributes:
        coordinates: (N, 4) int32, sample and the three axes in the graph's order.
        spatial_shape: grid size per axis.
    """

    def __init__(self, coordinates: np.ndarray, spatial_shape: Sequence[int]) -> None:
        """Keep the sites; the hash is made when it is needed.

        Args:
            coordinates: (N, 4) of an integer dtype.
            spatial_shape: grid size per axis.

        Raises:
            PointsError: not (N, 4) integers, or a site outside the grid.
        """
        self.coordinates = _checked(np.asarray(coordinates), spatial_shape)
        self.spatial_shape: Triple = tuple(int(size) for size in spatial_shape)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.coordinates)

    @property
    def shape(self) -> np.ndarray:
        """Grid size per axis, (3,) int64."""
        return np.array(self.spatial_shape, np.int64)

    @property
    def keys(self) -> np.ndarray:
        """Row-major index of every site in (sample, axes), (N,) int64."""
        keys = self.coordinates[:, 0].astype(np.int64)
        for axis, size in enumerate(self.spatial_shape):
            keys = keys * size + self.coordinates[:, axis + 1]
        return keys

    @functools.cached_property
    def hash(self) -> tuple[np.ndarray, np.ndarray, np.uint64]:
        """Slots, the row of each slot, and the shift of the hash.

        Raises:
            PointsError: two rows are the same site.
        """
        slots, shift = empty_slots(len(self))
        rows, keys = np.empty(len(slots), np.int32), self.keys
        row = voxel_hash.fill(keys, slots, rows, shift)
        if row >= 0:
            first = int(np.flatnonzero(keys == keys[row])[0])
            raise PointsError(
                f'coordinates: rows {first} and {row} are the same voxel {self.coordinates[row].tolist()}; '
                f'expected every voxel once: merge the points of a voxel, as voxelise() of inputs.points does'
            )
        return slots, rows, shift


def _checked(coordinates: np.ndarray, spatial_shape: Sequence[int]) -> np.ndarray:
    if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.dtype.kind not in 'iu':
        raise PointsError(
            f'coordinates: got {coordinates.dtype} of shape {coordinates.shape}, expected integers (N, 4): '
            f'sample and the three axes'
        )
    upper = np.array([np.iinfo(np.int32).max, *spatial_shape])
    if len(coordinates) and (coordinates.min() < 0 or (coordinates.max(0) >= upper).any()):
        row = int(np.flatnonzero(((coordinates < 0) | (coordinates >= upper)).any(1))[0])
        raise PointsError(
            f'coordinates: row {row} is {coordinates[row].tolist()}, outside the grid (sample, '
            f'{", ".join(map(str, spatial_shape))}); check the axis order and the point cloud range'
        )
    return np.ascontiguousarray(coordinates, np.int32)
