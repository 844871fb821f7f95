"""PyTorch forms of the compiled operators of mmdet3d copies, for inference on the CPU.

Sources: mit-han-lab/bevfusion 326653d (cells x first; mmdet3d's `voxel_layer` has z first), BEVDet f71858d
(`bev_pool_v2_ext` of HuangJunJie2017/BEVDet). No code is shared with `preprocess/points.py` and
`sparse/rulebook.py`, so that a proof finds mistakes in these two.

P points of V values, D axes of a grid, N voxels before and M after a convolution, K cells of a kernel, I and
O channels before and after, C channels of a feature, L intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def cells_of_points(
    points: Tensor, voxel_size: Sequence[float], limits: Sequence[float], axes: int
) -> tuple[Tensor, Tensor]:
    """Cell of each point (P, D) int64, x first, and whether it is in the grid (P,).

    `points` (P, V), coordinates first; `limits` are low, then high ends. The number of voxels is rounded.
    """
    low, high = (points.new_tensor(list(side)) for side in (limits[:axes], limits[axes:]))
    size = points.new_tensor(list(voxel_size))
    count = ((high - low) / size + 0.5).floor()  # C's round: halves away from zero
    cells = ((points[:, :axes] - low) / size).floor()
    return cells.long(), ((cells >= 0) & (cells < count)).all(1)


def dynamic_voxelize(
    points: Tensor, cells: Tensor, voxel_size: Sequence[float], limits: Sequence[float], axes: int = 3
) -> None:
    """Write the cell of each point (P, V) into `cells` (P, D), x first; -1 outside of the grid."""
    point_cells, inside = cells_of_points(points, voxel_size, limits, axes)
    cells.copy_(torch.where(inside[:, None], point_cells, -1))


def hard_voxelize(
    points: Tensor,
    voxels: Tensor,
    cells: Tensor,
    counts: Tensor,
    voxel_size: Sequence[float],
    limits: Sequence[float],
    max_points: int,
    max_voxels: int,
    axes: int = 3,
    deterministic: bool = True,
) -> int:
    """Group points by voxel, in order of appearance; return the number of voxels.

    Args:
        points: (P, V), coordinates first; points outside of the grid are dropped.
        voxels: (max_voxels, max_points, V) zeros, filled.
        cells: (max_voxels, D), filled, x first.
        counts: (max_voxels,) points per voxel, filled.
        voxel_size: per axis.
        limits: low, then high ends.
        max_points: points per voxel; -1 is no limit.
        max_voxels: later voxels are dropped; -1 is no limit.
        axes: D.
        deterministic: unused.
    """
    point_cells, inside = cells_of_points(points, voxel_size, limits, axes)
    points, point_cells = points[inside], point_cells[inside]
    if not len(points):
        return 0
    distinct_cells, voxel = torch.unique(point_cells, dim=0, return_inverse=True)
    order = torch.arange(len(points))
    first = order.new_empty(len(distinct_cells)).scatter_reduce(0, voxel, order, 'amin', include_self=False)
    appearance = first.argsort()
    rank = torch.empty_like(appearance)
    rank[appearance] = torch.arange(len(appearance))
    voxel = rank[voxel]
    by_voxel = voxel.argsort(stable=True)
    sizes = torch.bincount(voxel)
    slot = torch.empty_like(voxel)
    slot[by_voxel] = order - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    count = len(distinct_cells) if max_voxels == -1 else min(len(distinct_cells), max_voxels)
    fits = voxel < count
    if max_points != -1:
        fits &= slot < max_points
    voxels[voxel[fits], slot[fits]] = points[fits]
    cells[:count] = distinct_cells[appearance[:count]].to(cells.dtype)
    counts[:count] = torch.bincount(voxel[fits], minlength=count)[:count].to(counts.dtype)
    return count


def get_indice_pairs(
    indices: Tensor,
    batch_size: int,
    out_shape: Sequence[int],
    spatial_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_padding: Sequence[int],
    subm: int,
    transpose: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output voxels of a sparse convolution, and the pairs of input and output rows of each kernel cell.

    Returns voxels (M, 1 + D), sample first; pairs (K, 2, N) int32, filled with -1; and pairs per kernel cell
    (K,) int32. `indices` are (N, 1 + D). Submanifold convolutions ignore stride and padding.
    NotImplementedError: `transpose`.
    """
    if transpose:
        raise NotImplementedError('sparse_conv_ext: transposed sparse convolutions have no CPU form here')
    axes = indices.shape[1] - 1
    if subm:
        stride, padding = [1] * axes, [size // 2 for size in kernel_size]
    coordinates, shape = indices.long(), torch.tensor(list(out_shape))
    strides, pads, dilations = (torch.tensor(list(values)) for values in (stride, padding, dilation))

    def flat_index(samples: Tensor, cells: Tensor) -> Tensor:
        number = samples
        for axis in range(axes):
            number = number * shape[axis] + cells[:, axis]
        return number

    rows, numbers = [], []
    for cell in itertools.product(*map(range, kernel_size)):
        reached = coordinates[:, 1:] + pads - torch.tensor(cell) * dilations
        output_cells = torch.div(reached, strides, rounding_mode='floor')
        on_grid = (output_cells >= 0) & (output_cells < shape)
        valid = ((reached == output_cells * strides) & on_grid).all(1)
        rows.append(valid.nonzero()[:, 0])
        numbers.append(flat_index(coordinates[valid, 0], output_cells[valid]))
    if subm:
        output_numbers, order = flat_index(coordinates[:, 0], coordinates[:, 1:]).sort()
        outputs = indices
    else:
        output_numbers, order = torch.unique(torch.cat(numbers)), None
        cells, remaining = [], output_numbers
        for axis in reversed(range(axes)):
            cells.append(remaining % shape[axis])
            remaining = torch.div(remaining, shape[axis], rounding_mode='floor')
        outputs = torch.stack([remaining, *reversed(cells)], 1).to(indices.dtype)
    pairs = torch.full((len(rows), 2, len(indices)), -1, dtype=torch.int32)
    counts = torch.zeros(len(rows), dtype=torch.int32)
    for index, (row, reached_numbers) in enumerate(zip(rows, numbers, strict=True)):
        output_row = torch.searchsorted(output_numbers, reached_numbers)
        if order is not None:
            present = output_numbers[output_row.clamp(max=len(output_numbers) - 1)] == reached_numbers
            row, output_row = row[present], order[output_row[present]]
        counts[index] = len(row)
        pairs[index, 0, : len(row)], pairs[index, 1, : len(row)] = row.int(), output_row.int()
    return outputs, pairs, counts


def indice_conv(
    features: Tensor, filters: Tensor, pairs: Tensor, counts: Tensor, num_out: int, inverse: int, subm: int
) -> Tensor:
    """Features (M, O) after a sparse convolution.

    `features` (N, I); `filters` kernel sizes, I, O (spconv 1.x); `pairs`, `counts`: see `get_indice_pairs`;
    `inverse` swaps input and output rows.
    """
    kernels = filters.flatten(0, -3)
    outputs = features.new_zeros(num_out, filters.shape[-1])
    for kernel, pair, count in zip(kernels, pairs.long(), counts.tolist(), strict=True):
        input_rows, output_rows = pair.flip(0)[:, :count] if inverse else pair[:, :count]
        outputs.index_add_(0, output_rows, features[input_rows] @ kernel)
    return outputs


def bev_pool_forward(
    features: Tensor,
    cells: Tensor,
    lengths: Tensor,
    starts: Tensor,
    samples: int,
    depth: int,
    rows: int,
    columns: int,
) -> Tensor:
    """Sums of features per cell, (samples, depth, rows, columns, C); 0 without a point.

    `features` (P, C), sorted by cell; `cells` (P, 4) row, column, depth, sample; `lengths` and
    `starts` (L,): number and first point of each cell.
    """
    grid = features.new_zeros(int(samples), int(depth), int(rows), int(columns), features.shape[1])
    if not len(lengths):
        return grid
    sums = torch.segment_reduce(features, 'sum', lengths=lengths.long())
    row, column, level, sample = cells[starts.long()].long().unbind(1)
    grid[sample, level, row, column] = sums
    return grid


def bev_pool_v2_forward(
    depth: Tensor,
    features: Tensor,
    views: Tensor,
    depth_ranks: Tensor,
    feature_ranks: Tensor,
    cells: Tensor,
    lengths: Tensor,
    starts: Tensor,
) -> None:
    """Write the sums of depth times features per BEV cell into `views`, which holds zeros.

    Args:
        depth: (samples, cameras, bins, rows, columns).
        features: (samples, cameras, rows, columns, C).
        views: BEV features (samples, Z, Y, X, C), filled.
        depth_ranks: (P,) index of each point in the flat depth.
        feature_ranks: (P,) index in the flat features.
        cells: (P,) index in the flat views, sorted.
        lengths: (L,) points per cell.
        starts: (L,) first point of each cell.
    """
    if len(lengths):
        weights = depth.flatten()[depth_ranks.long(), None]
        products = weights * features.flatten(0, -2)[feature_ranks.long()]
        sums = torch.segment_reduce(products, 'sum', lengths=lengths.long())
        views.view(-1, views.shape[-1])[cells[starts.long()].long()] = sums
