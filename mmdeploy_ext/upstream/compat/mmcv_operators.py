"""The operators that mmcv-full 1.7.2 compiles into `mmcv._ext`, in PyTorch and numba, for inference on a CPU.

Without a compiler mmcv has all of them from here, with one it takes what mmcv has for GPUs alone.
Functions around CARAFE, masked convolution, deformable pooling, attention and dynamic scatter never reach
`_ext` on a CPU: `patches_mmcv`. Names and arguments are the compiled ones; most fill an argument. Results and
the order of ties equal the compiled CPU operators'. Sources: `mmcv/ops/csrc` of mmcv 1.7.2.

B batch, C channels, H, W size of a map, R regions, h, w size of a pooled region, N, M boxes, P points.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

executed: dict[str, None] = {}
"""Operators of this file that ran in this process."""


# --- boxes ----------------------------------------------------------------------------------------------


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fill `ious` (N, M), `aligned` (N,): of the union (mode 0) or the first box (1) of boxes (N, 4) xyxy."""
    first, second = (bboxes1, bboxes2) if aligned else (bboxes1[:, None], bboxes2[None])
    low = torch.maximum(first[..., :2], second[..., :2])
    shared = (torch.minimum(first[..., 2:], second[..., 2:]) - low + offset).clamp(min=0).prod(-1)
    area, other_area = _areas(first, offset), _areas(second, offset)
    ious.copy_(shared / (area + other_area - shared if mode == 0 else area))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices int64 of the boxes that greedy suppression keeps, best first; a larger IoU suppresses."""
    order, owners = _suppressors(boxes, scores, iou_threshold, offset, False)
    return order[owners < 0]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Indices of each kept box and those that it suppresses, best first; an equal IoU suppresses, too."""
    order, owners = _suppressors(dets[:, :4], dets[:, 4], iou_threshold, 0, True)
    kept = (owners < 0).nonzero()[:, 0].tolist()
    return [order[[place, *(owners == place).nonzero()[:, 0].tolist()]].tolist() for place in kept]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Indices (M,) int64 of the boxes that are left, and in `dets` (N, 5) boxes and lowered scores."""
    from mmdeploy_ext.upstream.compat import operator_loops

    rows = _array(torch.cat([boxes, scores[:, None]], 1)).copy()
    areas, indices = _array(_areas(boxes, offset)).copy(), np.arange(len(rows))
    limits = map(np.float32, (iou_threshold, sigma, min_score))
    count = operator_loops.soften(rows, areas, indices, *limits, method, np.float32(offset))
    dets.copy_(torch.from_numpy(rows))
    return torch.from_numpy(indices[:count])


def _suppressors(
    boxes: Tensor, scores: Tensor, threshold: float, offset: int, is_inclusive: bool
) -> tuple[Tensor, Tensor]:
    from mmdeploy_ext.upstream.compat import operator_loops

    order = scores.sort(0, descending=True)[1]
    boxes, areas = boxes[order], _areas(boxes, offset)[order]
    owners = operator_loops.suppressors(
        _array(boxes), _array(areas), np.float32(threshold), np.float32(offset), is_inclusive
    )
    return order, torch.from_numpy(owners).to(order.device)


def _areas(boxes: Tensor, offset: int) -> Tensor:
    sides = boxes[..., 2:4] - boxes[..., :2] + offset
    return sides[..., 0] * sides[..., 1]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to('cpu', torch.float32).contiguous().numpy()


# --- rotated boxes --------------------------------------------------------------------------------------


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Fill `ious` (N * M), `aligned` (N,), of the union (0) or the first box (1).

    Boxes (N, 5) centre, width, height, radians from x towards y.
    """
    if not aligned:
        count, other_count = len(boxes1), len(boxes2)
        boxes1, boxes2 = boxes1.repeat_interleave(other_count, 0), boxes2.repeat(count, 1)
    shared = _rotated_overlaps(boxes1, boxes2)
    areas, other_areas = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    has_area = (areas >= NO_AREA) & (other_areas >= NO_AREA)
    whole = areas + other_areas - shared if mode_flag == 0 else areas
    ious.copy_(torch.where(has_area, shared / whole, torch.zeros_like(shared)).view_as(ious))


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Indices int64 of the kept boxes, best first; labels do not count, as in the compiled operator."""
    from mmdeploy_ext.runtime.bird_eye import rotated_nms

    order = scores.sort(0, descending=True)[1]
    return order[torch.from_numpy(rotated_nms(_array(dets[order, :5]), iou_threshold)).to(order.device)]


def iou3d_boxes_overlap_bev_forward(boxes_a: Tensor, boxes_b: Tensor, ans_iou: Tensor) -> None:
    """Fill `ans_iou` (N, M) with the common areas from above of boxes (N, 7) centre, sizes, heading."""
    first = boxes_a[:, BEV].repeat_interleave(len(boxes_b), 0)
    ans_iou.copy_(_rotated_overlaps(first, boxes_b[:, BEV].repeat(len(boxes_a), 1)).view_as(ans_iou))


def iou3d_nms3d_forward(boxes: Tensor, keep: Tensor, num_out: Tensor, nms_overlap_thresh: float) -> None:
    """Fill `keep` with the `num_out` indices of kept boxes (N, 7), best first; a larger IoU suppresses."""
    from mmdeploy_ext.runtime.bird_eye import rotated_nms

    just_above = np.nextafter(np.float32(nms_overlap_thresh), np.float32(np.inf))
    _fill_kept(torch.from_numpy(rotated_nms(_array(boxes[:, BEV]), just_above)), keep, num_out)


def iou3d_nms3d_normal_forward(
    boxes: Tensor, keep: Tensor, num_out: Tensor, nms_overlap_thresh: float
) -> None:
    """Fill `keep` as `iou3d_nms3d_forward`, of boxes without their heading."""
    half = boxes[:, 3:5] / 2
    falling = torch.arange(len(boxes), 0, -1).float()
    upright = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
    _fill_kept(nms(upright, falling, nms_overlap_thresh, 0), keep, num_out)


def _fill_kept(kept: Tensor, keep: Tensor, num_out: Tensor) -> None:
    keep[: len(kept)] = kept.to(keep)
    num_out.fill_(len(kept))


NO_AREA = 1e-14
BEV = [0, 1, 3, 4, 6]
"""Columns of a box from above."""


def _rotated_overlaps(boxes: Tensor, other_boxes: Tensor) -> Tensor:
    from mmdeploy_ext.runtime import rotated_loops

    return torch.from_numpy(rotated_loops.overlaps(_array(boxes), _array(other_boxes))).to(boxes)


# --- regions --------------------------------------------------------------------------------------------


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` (R, C, h, w) with means (mode 1) or maxima (0) of samples; `rois` (R, 5) image, xyxy."""
    low, high = (rois[:, columns] * spatial_scale - 0.5 * aligned for columns in ([1, 2], [3, 4]))
    turns = torch.tensor([0.0, 0, 1, 0]).to(rois).expand(len(rois), 4)  # about the picture's corner
    _pool(input, rois, output, turns, low, high - low, sampling_ratio, aligned, pool_mode == 0)


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Fill `output` (R, C, h, w) with means of samples in `rois` (R, 6) image, centre, sizes, radians."""
    centres, sides = rois[:, 1:3] * spatial_scale - 0.5 * aligned, rois[:, 3:5] * spatial_scale
    angle = (-rois[:, 5:] if clockwise else rois[:, 5:]).double()
    turns = torch.cat([centres, angle.cos().to(rois), angle.sin().to(rois)], 1)
    _pool(input, rois, output, turns, None, sides, sampling_ratio, aligned, False)


def _pool(
    maps: Tensor,
    rois: Tensor,
    output: Tensor,
    turns: Tensor,
    starts: Tensor | None,
    sides: Tensor,
    sampling_ratio: int,
    aligned: bool,
    is_largest: bool,
) -> None:
    from mmdeploy_ext.upstream.compat import operator_loops

    (height, width), (rows, columns) = maps.shape[2:], output.shape[2:]
    if not aligned:
        sides = sides.clamp(min=1)
    elif (sides < 0).any():
        raise RuntimeError('RoIAlign: got regions with a negative side, which aligned=True does not allow')
    cells = sides / sides.new_tensor([columns, rows])
    counts = torch.full_like(cells, sampling_ratio) if sampling_ratio > 0 else cells.ceil()
    starts = -sides / 2 if starts is None else starts
    geometry = torch.cat([turns, starts, cells, counts], 1)
    images = rois[:, 0].long()
    places = torch.stack(
        [images * height * width, *(torch.full_like(images, side) for side in (height, width))], 1
    )
    table = maps.permute(0, 2, 3, 1).flatten(0, 2)
    pooled = operator_loops.pooled_regions(
        _array(table), _array(geometry), places.cpu().numpy(), rows, columns, is_largest
    )
    output.copy_(torch.from_numpy(pooled).transpose(1, 2).reshape(output.shape))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill `output` (R, C, h, w) with maxima of the cells in `rois` (R, 5) image, xyxy; 0 without a cell."""
    sizes = torch.tensor([pooled_width, pooled_height], dtype=rois.dtype)
    for number, (image, *box) in enumerate(rois.cpu()):
        low, high = torch.stack(box[:2]) * spatial_scale, (torch.stack(box[2:]) + 1) * spatial_scale
        if (high <= low).any():
            continue
        side, limits = (high - low) / sizes, torch.tensor(input.shape[:1:-1])
        for row, column in np.ndindex(pooled_height, pooled_width):
            place = torch.tensor([column, row])
            left, top = torch.minimum((place * side + low).floor().clamp(min=0).long(), limits).tolist()
            right, bottom = torch.minimum(
                ((place + 1) * side + low).ceil().clamp(min=0).long(), limits
            ).tolist()
            if left < right and top < bottom:
                output[number, :, row, column] = input[int(image), :, top:bottom, left:right].amax((1, 2))


# --- convolutions ---------------------------------------------------------------------------------------


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill `output` (B, D, h, w) with the convolution of `input` (B, C, H, W) at moved cells.

    `weight` (D, C / group, kH, kW); `offset` (B, 2 * deformable_group * kH * kW, h, w) y before x, cells.
    """
    mask = offset.new_ones(len(offset), offset.shape[1] // 2, *offset.shape[2:])
    steps = (dH, dW), (padH, padW), (dilationH, dilationW)
    _convolve(input, weight, offset, mask, output, steps, group, deformable_group)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill `output` as `deform_conv_forward`; samples are times `mask` (B, deformable_group * kh * kw, h, w).

    Offsets and mask of a larger map are read from their beginning, as one row an image.
    """
    steps = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    _convolve(input, weight, offset, mask, output, steps, group, deformable_group)
    if with_bias:
        output += bias.view(1, -1, 1, 1)


def _convolve(
    maps: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    steps: tuple[tuple[int, int], ...],
    groups: int,
    offset_groups: int,
) -> None:
    from mmdeploy_ext.upstream.compat import operator_loops

    points, cells = weight.shape[2] * weight.shape[3], output.shape[2] * output.shape[3]
    shape = offset_groups, points, *output.shape[2:]
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    for image in range(len(maps)):
        moves = offset[image].flatten()[: 2 * offset_groups * points * cells]
        shares = mask[image].flatten()[: offset_groups * points * cells]
        columns = operator_loops.columns_of(
            _array(maps[image]),
            _array(moves).reshape(*shape[:2], 2, *shape[2:]),
            _array(shares).reshape(shape),
            weight.shape[3],
            *steps,
        )
        samples = torch.from_numpy(columns).to(maps).reshape(groups, -1, cells)
        output[image] = (kernels @ samples).reshape(output.shape[1:])


def active_rotated_filter_forward(input: Tensor, indices: Tensor, output: Tensor) -> None:
    """Fill `output` (D * T, C * O, h, w) with T turns of kernels `input` (D, C, O, h, w) of O orientations.

    `indices` (O, h, w, T) are places of a turned kernel, from 1.
    """
    outputs, inputs = input.shape[:2]
    places = indices.flatten(0, 2).t().long() - 1
    turned = output.view(outputs, len(places), inputs, -1)
    index = places[None, :, None].expand_as(turned)
    turned.scatter_(3, index, input.flatten(2)[:, None].expand_as(turned))


def rotated_feature_align_forward(
    features: Tensor, best_bboxes: Tensor, output: Tensor, spatial_scale: float, points: int
) -> None:
    """Fill `output` (B, C, H, W): features, and samples at the centre and (5 points) corners of each box.

    `best_bboxes` (B, H, W, 5), or as many in one list, are read as y, x of the centre, two sizes, radians.
    """
    boxes = best_bboxes.reshape(len(features), -1, 5)
    y, x, width, height = (boxes[..., :4] * spatial_scale).unbind(2)
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    along_x, along_y, across_x, across_y = (
        cos * width / 2,
        sin * width / 2,
        -sin * height / 2,
        cos * height / 2,
    )
    total = features.flatten(2)
    for along, across in ((0, 0), (1, 1), (-1, 1), (-1, -1), (1, -1))[:points]:
        place_y, place_x = y + along * along_y + across * across_y, x + along * along_x + across * across_x
        total = total + _sampled(features, place_y, place_x)
    output.copy_(total.view_as(output))


def _sampled(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear samples (B, C, P) at places (B, P); the border's value up to a cell outside, then 0."""
    height, width = maps.shape[2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    corners = [
        torch.gather(maps.flatten(2), 2, (row * width + column)[:, None].expand(-1, maps.shape[1], -1))
        for row in (top, (top + 1).clamp(max=height - 1))
        for column in (left, (left + 1).clamp(max=width - 1))
    ]
    share_x, share_y = (x - left)[:, None], (y - top)[:, None]
    above, below = torch.lerp(corners[0], corners[1], share_x), torch.lerp(corners[2], corners[3], share_x)
    return torch.where(inside[:, None], torch.lerp(above, below, share_y), 0)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill `output` (B, H * W, H, W): weights `input` (B, h * w, H, W) of the cells around each cell.

    Type 0 collects: [b, cell, y, x] is the weight of `cell` at (y, x); type 1 distributes: the transpose.
    """
    maps = output.new_zeros(num_, h_feature, w_feature, h_feature + h_mask, w_feature + w_mask)
    weights = input.reshape(num_, h_mask, w_mask, h_feature, w_feature).permute(0, 3, 4, 1, 2)
    for y, x in np.ndindex(h_feature, w_feature):
        maps[:, y, x, y : y + h_mask, x : x + w_mask] = weights[:, y, x]
    inner = maps[..., half_h_mask : half_h_mask + h_feature, half_w_mask : half_w_mask + w_feature]
    pairs = inner.reshape(num_, h_feature * w_feature, -1)
    output.copy_((pairs.transpose(1, 2) if psa_type == 0 else pairs).reshape(output.shape))


# --- points ---------------------------------------------------------------------------------------------


def dynamic_voxelize_forward(
    points: Tensor, voxel_size: Tensor, coors_range: Tensor, coors: Tensor, NDim: int = 3
) -> None:
    """Write the cell of each point (P, V) into `coors` (P, 3), z first; -1 outside of the grid."""
    from mmdeploy_ext.upstream.compat.mmdet3d_operators import dynamic_voxelize

    dynamic_voxelize(points, coors, voxel_size.tolist(), coors_range.tolist(), NDim)
    coors.copy_(coors.flip(1))


def hard_voxelize_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    voxels: Tensor,
    coors: Tensor,
    num_points_per_voxel: Tensor,
    voxel_num: Tensor,
    max_points: int,
    max_voxels: int,
    NDim: int = 3,
    deterministic: bool = True,
) -> None:
    """Group points by voxel as `mmdet3d_operators.hard_voxelize`, cells z first; `voxel_num` is filled."""
    from mmdeploy_ext.upstream.compat.mmdet3d_operators import hard_voxelize

    limits = voxel_size.tolist(), coors_range.tolist(), max_points, max_voxels, NDim
    count = hard_voxelize(points, voxels, coors, num_points_per_voxel, *limits)
    coors[:count] = coors[:count].flip(1)
    voxel_num.fill_(count)


def points_in_boxes_cpu_forward(boxes_tensor: Tensor, pts_tensor: Tensor, pts_indices_tensor: Tensor) -> None:
    """Write 1 or 0 (N, P) for points (P, 3) in boxes (N, 7) centre of the bottom, sizes, heading."""
    pts_indices_tensor.copy_(_in_boxes(pts_tensor, boxes_tensor).t())


def points_in_boxes_part_forward(
    boxes_tensor: Tensor, pts_tensor: Tensor, box_idx_of_points_tensor: Tensor
) -> None:
    """Write the first box (B, P) with each point (B, P, 3); points outside of boxes (B, N, 7) keep theirs."""
    for boxes, points, numbers in zip(boxes_tensor, pts_tensor, box_idx_of_points_tensor, strict=True):
        inside, first = _in_boxes(points, boxes).int().max(1) if len(boxes) else (numbers * 0, numbers)
        numbers.copy_(torch.where(inside > 0, first.to(numbers), numbers))


def points_in_boxes_all_forward(
    boxes_tensor: Tensor, pts_tensor: Tensor, box_idx_of_points_tensor: Tensor
) -> None:
    """Write 1 (B, P, N) for points (B, P, 3) in boxes (B, N, 7)."""
    for boxes, points, inside in zip(boxes_tensor, pts_tensor, box_idx_of_points_tensor, strict=True):
        inside.masked_fill_(_in_boxes(points, boxes), 1)


def _in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    centres, half, turn = boxes[:, :3], boxes[:, 3:6] / 2, -boxes[:, 6].double()
    cos, sin = turn.cos().to(boxes), turn.sin().to(boxes)
    x, y = (points[:, None, axis] - centres[:, axis] for axis in (0, 1))
    along, across = x * cos + y * -sin, x * sin + y * cos
    height = (points[:, None, 2] - (centres[:, 2] + half[:, 2])).abs()
    return (height <= half[:, 2]) & (along.abs() < half[:, 0]) & (across.abs() < half[:, 1])


def three_interpolate_forward(
    points_tensor: Tensor,
    idx_tensor: Tensor,
    weight_tensor: Tensor,
    out_tensor: Tensor,
    b: int,
    c: int,
    m: int,
    n: int,
) -> None:
    """Fill `out_tensor` (B, C, P): weighted sums of three of the features (B, C, M) for each point.

    `idx_tensor` and `weight_tensor` (B, P, 3).
    """
    index = idx_tensor.long().flatten(1)[:, None].expand(-1, c, -1)
    features = points_tensor.gather(2, index).unflatten(2, (n, 3))
    out_tensor.copy_((features * weight_tensor[:, None]).sum(-1))


# --- the module -----------------------------------------------------------------------------------------

FORMS: tuple[Callable[..., Any], ...] = (
    active_rotated_filter_forward,
    bbox_overlaps,
    box_iou_rotated,
    deform_conv_forward,
    dynamic_voxelize_forward,
    hard_voxelize_forward,
    modulated_deform_conv_forward,
    nms,
    nms_match,
    nms_rotated,
    points_in_boxes_cpu_forward,
    psamask_forward,
    roi_align_forward,
    roi_align_rotated_forward,
    rotated_feature_align_forward,
    softnms,
)
"""Operators that a compiled mmcv has on a CPU."""
GPU_FORMS: tuple[Callable[..., Any], ...] = (
    iou3d_boxes_overlap_bev_forward,
    iou3d_nms3d_forward,
    iou3d_nms3d_normal_forward,
    points_in_boxes_all_forward,
    points_in_boxes_part_forward,
    roi_pool_forward,
    three_interpolate_forward,
)
"""Operators that a compiled mmcv has on a GPU alone."""


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Deformable attention, see `plain_kernels.attention_at_points`."""
    from mmdeploy_ext.upstream.compat.plain_kernels import attention_at_points

    executed[ms_deform_attn_forward.__name__] = None
    return attention_at_points(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
    )


TRACED_FORMS: tuple[Callable[..., Any], ...] = (ms_deform_attn_forward,)
"""Operators of a GPU alone that repositories call by themselves, and whose graph is exported."""


class PlainExtension(ModuleType):
    """`mmcv._ext` without a compiler; an operator without a form raises NotImplementedError when called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        for form in (*FORMS, *GPU_FORMS):
            setattr(self, form.__name__, _recorded(form))
        for form in TRACED_FORMS:
            setattr(self, form.__name__, form)
        self.get_compiler_version = self.get_compiling_cuda_version = lambda: 'none'

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(
                f'mmcv.ops: {name} has no PyTorch version, and mmcv is installed without compiled '
                'operators: run `make env PLAIN=0` to compile them'
            )

        return refuse


def use_on_cpu(extension: ModuleType) -> None:
    """Let operators that a compiled extension has on a GPU alone take tensors on the CPU, too."""
    for name, form in {form.__name__: _recorded(form) for form in GPU_FORMS}.items():
        setattr(extension, name, _dispatched(form, getattr(extension, name)))
    for form in TRACED_FORMS:
        setattr(extension, form.__name__, _dispatched(form, getattr(extension, form.__name__)))


def _recorded(form: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(form)
    numbers = [name for name, given in signature.parameters.items() if given.annotation != 'Tensor']

    @functools.wraps(form)
    def operator(*args: Any, **kwargs: Any) -> Any:
        executed[form.__name__] = None
        given = signature.bind(*args, **kwargs)
        with untraced():
            for name in numbers:
                if isinstance(given.arguments.get(name), Tensor):  # a size of a traced tensor
                    given.arguments[name] = given.arguments[name].item()
            return form(*given.args, **given.kwargs)

    return operator


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Let PyTorch's tracer see nothing, as of a compiled operator."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def _dispatched(plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def operator(*args: Any, **kwargs: Any) -> Any:
        return (compiled if args[0].is_cuda else plain)(*args, **kwargs)

    return operator
