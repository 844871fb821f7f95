"""PyTorch forms of compiled operators of research repositories, for inference on the CPU.

`operator_forms` binds each to the sources that it replaces. They compute what the CUDA kernels compute, which
the checkpoints were trained with. Sources: mmdet3d 0.11 to 0.18, mit-han-lab/bevfusion 326653d, tusen-ai/SST
7c95376, BEVDet f71858d, hustvl/MapTR a6872d8, BEVDepth d78c7b5 (`voxel_pooling`), haoranD/DeepInteraction
(`local_similarity`). No code is shared with `runtime/preprocess/points.py` and
`runtime/sparse/rulebook.py`, so that a proof finds mistakes in these two.

P points of V values, D axes of a grid, N voxels before and M after a convolution, K cells of a kernel, I and
O channels before and after, C channels of a feature, L intervals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cells_of_points(
    points: Tensor, voxel_size: Sequence[float], limits: Sequence[float], axes: int, rounded_up: bool = False
) -> tuple[Tensor, Tensor]:
    """Cell of each point (P, D) int64, x first, and the number of cells (D,).

    `points` (P, V), coordinates first; `limits` are low, then high ends. The number of voxels is rounded, or
    `rounded_up`.
    """
    low, high = (points.new_tensor(list(side)) for side in (limits[:axes], limits[axes:]))
    size = points.new_tensor(list(voxel_size))
    count = (high - low) / size
    cells = ((points[:, :axes] - low) / size).floor()
    count = count.ceil() if rounded_up else (count + 0.5).floor()  # C's round: halves away from zero
    return cells.long(), count.long()


def dynamic_voxelize(
    points: Tensor,
    cells: Tensor,
    voxel_size: Sequence[float],
    limits: Sequence[float],
    axes: int = 3,
    *,
    z_first: bool = False,
    moved: bool = False,
) -> None:
    """Write the cell of each point (P, V) into `cells` (P, D); -1 outside of the grid.

    `moved`: points outside are `moved` into the next cell, and the number of cells is rounded up.
    """
    point_cells, count = cells_of_points(points, voxel_size, limits, axes, rounded_up=moved)
    inside = ((point_cells >= 0) & (point_cells < count)).all(1)
    point_cells = torch.minimum(point_cells.clamp(min=0), count - 1) if moved else point_cells
    point_cells = point_cells if moved else torch.where(inside[:, None], point_cells, -1)
    cells.copy_(point_cells.flip(1) if z_first else point_cells)


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
    *,
    z_first: bool = False,
    moved: bool = False,
    stops: bool = False,
) -> int:
    """Group points by voxel, in order of appearance; return the number of voxels.

    Args:
        points: (P, V), coordinates first; points outside of the grid are dropped.
        voxels: (max_voxels, max_points, V) zeros, filled.
        cells: (max_voxels, D), filled.
        counts: (max_voxels,) points per voxel, filled.
        voxel_size: per axis.
        limits: low, then high ends.
        max_points: points per voxel; -1 is no limit.
        max_voxels: later voxels are dropped; -1 is no limit.
        axes: D.
        deterministic: unused.
        z_first: cells are z, y, x.
        moved: points outside are moved into the next cell.
        stops: all points after the first of a dropped voxel are dropped.
    """
    point_cells, cell_counts = cells_of_points(points, voxel_size, limits, axes)
    if moved:
        point_cells = torch.minimum(point_cells.clamp(min=0), cell_counts - 1)
    inside = ((point_cells >= 0) & (point_cells < cell_counts)).all(1)
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
    kept = voxel < count
    if stops and count < len(distinct_cells):
        kept &= order < first[appearance[count]]
    if max_points != -1:
        kept &= slot < max_points
    voxels[voxel[kept], slot[kept]] = points[kept]
    kept_cells = distinct_cells[appearance[:count]]
    cells[:count] = (kept_cells.flip(1) if z_first else kept_cells).to(cells.dtype)
    counts[:count] = torch.bincount(voxel[kept], minlength=count).to(counts.dtype)
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
        raise NotImplementedError('sparse_conv_ext: transposed sparse convolutions have no CPU version')
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


def nearest_assign_forward(
    classes: Tensor,
    present: Tensor,
    center_class: Tensor,
    centers_classes: Tensor,
    centers: Tensor,
    ids: Tensor,
    instances: Tensor,
) -> None:
    """Write the id of the nearest centre of a voxel's class, the first of equals, or the class.

    Args:
        classes: (X, Y, Z) of voxels.
        present: classes of voxels that belong to centres.
        center_class: class of centres of each class of voxels.
        centers_classes: (n,).
        centers: (n, 3), voxels.
        ids: (n,).
        instances: (X, Y, Z), filled.
    """
    instances.copy_(classes)
    for label in present.unique().tolist():
        voxels, rows = (classes == label).nonzero(), (centers_classes == center_class[label]).nonzero()[:, 0]
        instances[classes == label] = 0
        for part in voxels.split(4096) if len(rows) else ():
            apart = ((part[:, None] - centers[rows].long()) ** 2).sum(-1)
            first = (apart * len(rows) + torch.arange(len(rows), device=apart.device)).argmin(1)
            instances[tuple(part.T)] = ids[rows[first]].to(instances)


def dynamic_point_to_voxel(
    features: Tensor, cells: Tensor, reduction: str, *, without_first: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (N, C) and cells (N, D) of voxels in ascending order, voxel of each point, points per voxel.

    `features` (P, C) and `cells` (P, D) of points; a point with a negative cell has voxel -1. `reduction` is
    'max', 'sum' or 'mean'. `without_first`: the first of all cells is taken for the negative one, and left
    out, also where no cell is negative.
    """
    if not len(features):
        empty = cells.new_empty(0, dtype=torch.int32)
        return features.clone(), cells.clone(), empty, empty.clone()
    cells = cells.masked_fill((cells < 0).any(1, keepdim=True), -1)
    distinct_cells, voxel, counts = torch.unique(cells, dim=0, return_inverse=True, return_counts=True)
    left_out = int(without_first or bool(distinct_cells[0, 0] < 0))
    kept = voxel >= left_out
    mode = {'max': 'amax', 'sum': 'sum', 'mean': 'mean'}[reduction]
    index = (voxel[kept] - left_out)[:, None].expand(-1, features.shape[1])
    sums = features.new_zeros(len(distinct_cells) - left_out, features.shape[1])
    sums = sums.scatter_reduce(0, index, features[kept], mode, include_self=False)
    return sums, distinct_cells[left_out:], (voxel - left_out).int(), counts[left_out:].int()


def are_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (B, P, 3) are in boxes (B, T, 7): (B, P, T).

    Boxes of mmdet3d before 1.0: x, y and z of the bottom's centre, width, length, height and yaw, clockwise
    from the negative y-axis.
    """
    centre, width, length, height, yaw = boxes[:, None].split([3, 1, 1, 1, 1], dim=-1)
    moved = points[:, :, None] - centre
    angle = yaw[..., 0] + math.pi / 2
    ahead = moved[..., 0] * angle.cos() - moved[..., 1] * angle.sin()
    aside = moved[..., 0] * angle.sin() + moved[..., 1] * angle.cos()
    above = (moved[..., 2] - height[..., 0] / 2).abs()
    is_inside = (ahead.abs() < length[..., 0] / 2) & (aside.abs() < width[..., 0] / 2)
    return is_inside & (above <= height[..., 0] / 2)


def points_in_boxes_gpu(boxes: Tensor, points: Tensor, box_of_points: Tensor) -> int:
    """Write the first box (B, T, 7) of each point (B, P, 3) into `box_of_points` (B, P), which holds -1."""
    inside = are_in_boxes(points, boxes)
    if inside.shape[2]:
        box_of_points[inside.any(2)] = inside.int().argmax(2)[inside.any(2)].to(box_of_points.dtype)
    return 1


def points_in_boxes_batch(boxes: Tensor, points: Tensor, are_inside: Tensor) -> int:
    """Write 1 into `are_inside` (B, P, T) for each box (B, T, 7) of a point (B, P, 3)."""
    are_inside[are_in_boxes(points, boxes)] = 1
    return 1


def points_in_boxes_cpu(boxes: Tensor, points: Tensor, are_inside: Tensor) -> int:
    """Write into `are_inside` (T, P) whether points (P, 3) are in boxes (T, 7)."""
    are_inside.copy_(are_in_boxes(points[None], boxes[None])[0].t())
    return 1


def _turned(boxes: Tensor) -> Tensor:
    """x, y, width, height, angle of boxes (N, 5) x1, y1, x2, y2, angle clockwise."""
    low, high = boxes[:, :2], boxes[:, 2:4]
    return torch.cat([(low + high) / 2, high - low, -boxes[:, 4:]], dim=1)


def boxes_iou_bev(first: Tensor, second: Tensor, ious: Tensor) -> int:
    """Write the IoU of turned boxes (M, 5) and (N, 5) x1, y1, x2, y2, angle into `ious` (M, N)."""
    from mmcv.ops import box_iou_rotated

    ious.copy_(box_iou_rotated(_turned(first), _turned(second)))
    return 1


def nms_of_turned_boxes(boxes: Tensor, kept: Tensor, threshold: float, device: int | None = None) -> int:
    """Write rows that NMS keeps of boxes (N, 5), best first, into `kept` (N,); return their number."""
    ious = boxes.new_zeros(len(boxes), len(boxes))
    boxes_iou_bev(boxes, boxes, ious)
    dropped, rows = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device), []
    for row in range(len(boxes)):
        if not dropped[row]:
            rows.append(row)
            dropped |= ious[row] > threshold
    kept[: len(rows)] = kept.new_tensor(rows)
    return len(rows)


def geometric_kernel_attention(
    values: Tensor, shapes: Tensor, starts: Tensor, places: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    """Weighted sums (B, Q, H * D) of cells of L maps.

    `values` (B, sum of h * w, H, D); `shapes` (L, 2) h, w; `starts` (L,); `places` (B, Q, H, L, P, 2) x, y in
    cells, moved into the map; `weights` (B, Q, H, L, P).
    """
    columns, rows = places.unbind(-1)
    height, width = shapes[:, :1], shapes[:, 1:]
    columns = torch.minimum(columns.clamp(min=0), width - 1)
    rows = torch.minimum(rows.clamp(min=0), height - 1)
    cells = (starts[:, None] + rows * width + columns).permute(0, 2, 1, 3, 4)  # B, H, Q, L, P
    flat = cells.flatten(2)[..., None].expand(-1, -1, -1, values.shape[-1])
    sampled = values.permute(0, 2, 1, 3).gather(2, flat).unflatten(2, cells.shape[2:])
    sums = (sampled * weights.permute(0, 2, 1, 3, 4)[..., None]).sum((3, 4))
    return sums.permute(0, 2, 1, 3).flatten(2)


def nms_of_upright_boxes(boxes: Tensor, kept: Tensor, threshold: float, device: int | None = None) -> int:
    """Write rows that NMS keeps of boxes (N, 5), best first, into `kept` (N,); their angle is not read."""
    from torchvision.ops import nms

    rows = nms(boxes[:, :4].contiguous(), torch.arange(len(boxes), 0, -1).to(boxes), threshold)
    kept[: len(rows)] = rows.to(kept)
    return len(rows)


def voxel_pooling(
    samples: int,
    points: int,
    channels: int,
    columns: int,
    rows: int,
    levels: int,
    cells: Tensor,
    features: Tensor,
    sums: Tensor,
    places: Tensor,
) -> int:
    """Add features (samples, points, C) into `sums` (samples, rows, columns, C) at their cells.

    `cells` (samples, points, 3) column, row, level; those of points in the grid go into `places`, as sample,
    row and column. Levels are summed.
    """
    count = cells.new_tensor([int(columns), int(rows), int(levels)])
    inside = ((cells >= 0) & (cells < count)).all(-1)
    column, row, _ = cells[inside].unbind(-1)
    sample = inside.nonzero()[:, 0].to(cells)
    places[inside] = torch.stack([sample, row, column], dim=-1).to(places)
    number = (sample * int(rows) + row) * int(columns) + column
    sums.view(-1, sums.shape[-1]).index_add_(0, number.long(), features[inside])
    return 1


def _windows(maps: Tensor, height: int, width: int) -> Tensor:
    """Values (B, C, K, H * W) of maps (B, C, H, W) around each cell, row by row, zeros beyond."""
    padding = height // 2, width // 2
    return functional.unfold(maps, (height, width), padding=padding).unflatten(1, (maps.shape[1], -1))


def local_similarity(maps: Tensor, others: Tensor, height: int, width: int) -> Tensor:
    """Products (B, H, W, height * width) of each cell of maps (B, C, H, W) with those around it of others."""
    products = (maps.flatten(2)[:, :, None] * _windows(others, height, width)).sum(1)
    return products.unflatten(2, maps.shape[2:]).permute(0, 2, 3, 1).contiguous()


def local_sums(maps: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """Sums (B, C, H, W) of the cells around each one, by weights (B, H, W, height * width)."""
    shares = weights.flatten(1, 2).transpose(1, 2)[:, None]
    return (_windows(maps, height, width) * shares).sum(2).unflatten(2, maps.shape[2:])


def places_in_groups(groups: Tensor, places: Tensor) -> None:
    """Write for each entry of `groups` (N,) how many before it are of its group into `places` (N,)."""
    order = groups.argsort(stable=True)
    ordered = groups[order]
    places[order] = torch.arange(len(groups)).to(places) - torch.searchsorted(ordered, ordered).to(places)


def samples_of_views(*args: torch.Tensor) -> torch.Tensor:
    """Sample levels (B, views, h, w, C) at places (B, Q, P, 3), weighted (B, Q, P, levels): (B, Q, C, P).

    Places are x, y and view from 0 to 1, from the centre of the first pixel to that of the last; the nearest
    view is taken. Source: SparseBEV, `msmv_sampling_forward.cu`.
    """
    *levels, places, weights = args
    last = max(levels[0].shape[1] - 1, 1)
    views = torch.floor(places[..., 2:] * last + 0.5) / last
    grid = 2 * torch.cat([places[..., :2], views], -1)[:, :, :, None] - 1
    total = 0
    for level, weight in zip(levels, weights.unbind(-1), strict=True):
        volume = level.permute(0, 4, 1, 2, 3)
        sampled = torch.nn.functional.grid_sample(volume, grid, align_corners=True)[..., 0]
        total = total + sampled * weight[:, None]
    return total.transpose(1, 2)
