"""Compiled operators that mmdet3d 0.x and copies of it bring along, in PyTorch; for inference on the CPU.

A copy of mmdet3d in a research repository builds its operators for CUDA when it is installed. `MODULES` names
those of its modules whose functions are here. The results are those of the compiled ones of
mit-han-lab/bevfusion 326653d, whose cells of points are x first (mmdet3d's own `voxel_layer` has z first),
and depend on no thread. They share no code with `preprocess/points.py` and `sparse/rulebook.py`, by which
files run: a proof would not see a fault that both have.

Glossary: P points, V values of a point, D axes of a grid, N voxels before and M after a convolution, K cells
of a kernel, I and O channels before and after it, C channels of a feature, L intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def cells_of_points(
    points: Tensor, voxel_size: Sequence[float], limits: Sequence[float], axes: int
) -> tuple[Tensor, Tensor]:
    """Return the cell of each point (P, D) int64, x first, and whether it is one of the grid (P,).

    The grid begins at the low ends; its number of voxels is rounded, so that a point that is between the
    limits may be outside of it. The arithmetic is in the precision of the points, as in the compiled kernel.

    Args:
        points: (P, V), the coordinates first.
        voxel_size: side of a voxel along each axis, in the unit of the points.
        limits: all low ends, then all high ends, likewise.
        axes: D.
    """
    low, high = (points.new_tensor(list(side)) for side in (limits[:axes], limits[axes:]))
    size = points.new_tensor(list(voxel_size))
    count = ((high - low) / size).round()
    cells = ((points[:, :axes] - low) / size).floor()
    return cells.long(), ((cells >= 0) & (cells < count)).all(1)


def dynamic_voxelize(
    points: Tensor, cells: Tensor, voxel_size: Sequence[float], limits: Sequence[float], axes: int = 3
) -> None:
    """Write the cell of each point (P, V) into `cells` (P, D), x first; -1 on all axes outside of the grid.

    `cells` are integers. For `voxel_size`, `limits` and `axes` see `cells_of_points`.
    """
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
    """Group points by voxel, in the order in which voxels appear; return how many voxels are filled.

    Args:
        points: (P, V) values of points, the coordinates first; those outside of the grid are left out.
        voxels: (max_voxels, max_points, V) zeros, filled with the first points of each voxel.
        cells: (max_voxels, D), filled with the cell of each voxel, x first.
        counts: (max_voxels,), filled with the number of points that each voxel keeps.
        voxel_size: side of a voxel along each axis.
        limits: all low ends, then all high ends, see `cells_of_points`.
        max_points: largest number of points of a voxel; later ones are dropped; -1 is no limit.
        max_voxels: points of voxels that appear later are dropped; -1 takes all, which then have to fit.
        axes: axes of the grid.
        deterministic: not used; the result is the same at every call.
    """
    point_cells, inside = cells_of_points(points, voxel_size, limits, axes)
    points, point_cells = points[inside], point_cells[inside]
    if not len(points):
        return 0
    distinct, voxel = torch.unique(point_cells, dim=0, return_inverse=True)
    order = torch.arange(len(points))
    first = order.new_empty(len(distinct)).scatter_reduce(0, voxel, order, 'amin', include_self=False)
    appearance = first.argsort()
    rank = torch.empty_like(appearance)
    rank[appearance] = torch.arange(len(appearance))
    voxel = rank[voxel]
    by_voxel = voxel.argsort(stable=True)
    sizes = torch.bincount(voxel)
    place = torch.empty_like(voxel)
    place[by_voxel] = order - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    count = len(distinct) if max_voxels == -1 else min(len(distinct), max_voxels)
    fits = voxel < count
    if max_points != -1:
        fits &= place < max_points
    voxels[voxel[fits], place[fits]] = points[fits]
    cells[:count] = distinct[appearance[:count]].to(cells.dtype)
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
    """Return which voxels a sparse convolution joins.

    These are the voxels behind it (M, 1 + D) of the dtype of `indices`, sample first, in the order of their
    cells (of a submanifold convolution those before it); pairs (K, 2, N) int32 of the rows before and behind
    it, -1 where there are fewer; and how many pairs each cell of the kernel has, (K,) int32. Cells of the
    kernel are numbered row by row.

    Args:
        indices: (N, 1 + D) sample and cell of each voxel.
        batch_size: not used.
        out_shape: cells of the grid behind the convolution.
        spatial_shape: not used.
        kernel_size: cells of the kernel along each axis.
        stride: stride along each axis; not used by a submanifold convolution, which takes 1.
        padding: padding along each axis; not used by a submanifold convolution, which takes half the kernel.
        dilation: dilation along each axis.
        out_padding: not used.
        subm: whether the convolution is submanifold.
        transpose: has to be 0.

    Raises:
        NotImplementedError: `transpose` is not 0.
    """
    if transpose:
        raise NotImplementedError('sparse_conv_ext: transposed sparse convolutions have no CPU form here')
    axes = indices.shape[1] - 1
    if subm:
        stride, padding = [1] * axes, [size // 2 for size in kernel_size]
    places, shape = indices.long(), torch.tensor(list(out_shape))
    steps, pads, spread = (torch.tensor(list(values)) for values in (stride, padding, dilation))

    def numbered(samples: Tensor, cells: Tensor) -> Tensor:
        number = samples
        for axis in range(axes):
            number = number * shape[axis] + cells[:, axis]
        return number

    rows, numbers = [], []
    for cell in itertools.product(*map(range, kernel_size)):
        reached = places[:, 1:] + pads - torch.tensor(cell) * spread
        behind = torch.div(reached, steps, rounding_mode='floor')
        valid = ((reached == behind * steps) & (behind >= 0) & (behind < shape)).all(1)
        rows.append(valid.nonzero()[:, 0])
        numbers.append(numbered(places[valid, 0], behind[valid]))
    if subm:
        output_numbers, order = numbered(places[:, 0], places[:, 1:]).sort()
        outputs = indices
    else:
        output_numbers, order = torch.unique(torch.cat(numbers)), None
        cells, rest = [], output_numbers
        for axis in reversed(range(axes)):
            cells.append(rest % shape[axis])
            rest = torch.div(rest, shape[axis], rounding_mode='floor')
        outputs = torch.stack([rest, *reversed(cells)], 1).to(indices.dtype)
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
    """Return the features (M, O) behind a sparse convolution.

    Args:
        features: (N, I).
        filters: kernel sizes, then I and O: the layout of spconv 1.x.
        pairs: see `get_indice_pairs`.
        counts: see `get_indice_pairs`.
        num_out: M.
        inverse: whether it goes back from the second rows of the pairs to the first.
        subm: not used.
    """
    kernels = filters.flatten(0, -3)
    outputs = features.new_zeros(num_out, filters.shape[-1])
    for kernel, pair, count in zip(kernels, pairs.long(), counts.tolist(), strict=True):
        before, behind = pair.flip(0)[:, :count] if inverse else pair[:, :count]
        outputs.index_add_(0, behind, features[before] @ kernel)
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
    """Return the sums of features of each cell, (samples, depth, rows, columns, C); 0 without a point.

    Args:
        features: (P, C), those of one cell one behind the other.
        cells: (P, 4) row, column, depth and sample of each point.
        lengths: (L,) points of each interval of points of one cell; together the intervals, one behind the
            other, are all points.
        starts: (L,) first point of each interval.
        samples: number of samples of the grid.
        depth: number of cells of the grid along z.
        rows: number of cells of the grid along its first axis.
        columns: number of cells of the grid along its second axis.
    """
    grid = features.new_zeros(int(samples), int(depth), int(rows), int(columns), features.shape[1])
    if not len(lengths):
        return grid
    sums = torch.segment_reduce(features, 'sum', lengths=lengths.long())
    row, column, level, sample = cells[starts.long()].long().unbind(1)
    grid[sample, level, row, column] = sums
    return grid


MODULES: dict[str, dict[str, Callable[..., object]]] = {
    'voxel_layer': dict(hard_voxelize=hard_voxelize, dynamic_voxelize=dynamic_voxelize),
    'sparse_conv_ext': dict(
        get_indice_pairs_2d=get_indice_pairs,
        get_indice_pairs_3d=get_indice_pairs,
        indice_conv_fp32=indice_conv,
    ),
    'bev_pool_ext': dict(bev_pool_forward=bev_pool_forward),
}
"""Name of a compiled module, as copies of mmdet3d import it -> its functions that have a form here."""
