"""Operators of mmcv 1.7.2 and research repositories that only have CUDA kernels, in PyTorch.

CARAFE: arXiv:1905.02188; deformable pooling of regions: arXiv:1703.06211, arXiv:1811.11168; DCNv3:
arXiv:2211.05778; DCNv4: arXiv:2401.06197.

B batch, C channels, R regions; h, w rows and columns of a map or of a region's cells; attention: T queries, S
keys, H heads, D channels of a head.
"""

import contextlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MMCV_MODULES = (
    'MaskedConv2d',
    'CARAFEPack',
    'DeformRoIPoolPack',
    'ModulatedDeformRoIPoolPack',
    'DynamicScatter',
)
"""Modules of mmcv that compute by this file on the CPU."""


def carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Maps (B, C, h * scale_factor, w * scale_factor), enlarged by kernels of their own.

    `features` (B, C, h, w); `masks` (B, group_size * kernel_size ** 2, h * scale_factor, w * scale_factor),
    group by group; `kernel_size` odd, zeros beyond the map.
    """
    channels, (height, width) = features.shape[1], masks.shape[2:]
    padded = functional.pad(features, [kernel_size // 2] * 4)
    padded = functional.interpolate(padded, scale_factor=scale_factor, mode='nearest')
    enlarged = torch.zeros((), dtype=features.dtype, device=features.device)
    for tap in range(kernel_size**2):
        row, column = (scale_factor * place for place in divmod(tap, kernel_size))
        weight = masks[:, tap :: kernel_size**2]
        if group_size > 1:
            weight = weight.repeat_interleave(channels // group_size, dim=1)
        enlarged = enlarged + padded[:, :, row : row + height, column : column + width] * weight
    return enlarged


def masked_conv2d(
    features: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """Convolve features (1, C, h, w) inside the result's mask (1, h, w), bool or above 0; zero outside."""
    if features.shape[0] != 1 or mask.dim() != 3:
        raise ValueError(
            f'masked_conv2d: got features {tuple(features.shape)} and mask {tuple(mask.shape)}; expected '
            'one image, (1, C, h, w) and (1, h, w)'
        )
    everywhere = functional.conv2d(features, weight, bias, stride, padding)
    inside = mask if mask.dtype == torch.bool else mask > 0
    return torch.where(inside[None], everywhere, torch.zeros_like(everywhere))


def bins_of(
    boxes: Tensor, offset: Tensor | None, size: tuple[int, int], scale: float, gamma: float
) -> Tensor:
    """Cells of regions (R, 4) as boxes (R * h * w, 4) xyxy, pixels, moved by offsets.

    Offsets (R, 2, h, w) are x before y; 1 moves by `gamma` times the region's side. `size` is h, w; `scale`
    cells of the map per pixel.
    """
    low, high = boxes[:, :2] * scale - 0.5, boxes[:, 2:] * scale - 0.5
    region_size = (high - low)[:, None, None]
    cell = region_size / boxes.new_tensor([size[1], size[0]])
    rows, columns = (torch.arange(side, device=boxes.device).to(boxes) for side in size)
    place = torch.stack(torch.meshgrid(columns, rows, indexing='xy'), dim=-1)
    start = low[:, None, None] + place * cell
    if offset is not None:
        start = start + offset.permute(0, 2, 3, 1) * gamma * region_size
    bins = torch.cat([start, start + cell], dim=-1)
    return ((bins + 0.5) / scale).reshape(-1, 4)


def deform_roi_pool(
    features: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Pool regions (R, C, h, w) with moved cells.

    `features` (B, C, H, W); `rois` (R, 5) image, xyxy pixels; `offset`: see `bins_of`; `spatial_scale` cells
    of the map per pixel; `sampling_ratio` samples per axis of a cell, 0: as many as cells of the map.
    """
    from mmcv.ops import roi_align
    from torch.nn.modules.utils import _pair

    height, width = _pair(output_size)
    bins = bins_of(rois[:, 1:], offset, (height, width), spatial_scale, gamma)
    images = rois[:, :1].repeat_interleave(height * width, dim=0)
    moved = torch.cat([images, bins], dim=1)
    cells = roi_align(features, moved, (1, 1), spatial_scale, sampling_ratio, 'avg', True)
    return cells.reshape(len(rois), height, width, features.shape[1]).permute(0, 3, 1, 2).contiguous()


def dynamic_scatter(feats: Tensor, coors: Tensor, reduce_type: str = 'max') -> tuple[Tensor, Tensor]:
    """Features (M, C) and coordinates (M, D) of voxels, in ascending order of coordinates.

    `feats` (N, C) and `coors` (N, D) of points, dropped if negative; `reduce_type` is 'mean', 'sum' or 'max'.
    """
    if reduce_type not in ('mean', 'sum', 'max'):
        raise ValueError(f"dynamic_scatter: got reduce_type {reduce_type!r}; expected 'mean', 'sum' or 'max'")
    inside = (coors >= 0).all(1)
    feats, coors = feats[inside], coors[inside]
    voxels, point_to_voxel, counts = torch.unique(coors, dim=0, return_inverse=True, return_counts=True)
    if reduce_type == 'max':
        index = point_to_voxel[:, None].expand_as(feats)
        greatest = feats.new_empty(len(voxels), feats.shape[1])
        return greatest.scatter_reduce(0, index, feats, 'amax', include_self=False), voxels
    sums = feats.new_zeros(len(voxels), feats.shape[1]).index_add(0, point_to_voxel, feats)
    return (sums / counts[:, None].to(sums) if reduce_type == 'mean' else sums), voxels


def dcnv3_forward(
    features: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    *_: Any,
    has_centre: bool = True,
) -> Tensor:
    """DCNv3 (B, h, w, G * D): sums of bilinear samples around each place, weighted by the mask.

    G groups of D channels, P points of a kernel. `features` (B, H, W, G * D), zeros beyond; `offset` (B, h,
    w, G * P * 2) x before y, cells, points down the columns of the kernel; `mask` (B, h, w, G * P);
    `offset_scale` scales kernel and offsets; `has_centre`: the middle is one of the P points. Source:
    InternImage 31c962d, `detection/ops_dcnv3`.
    """
    batch, height, width, _ = features.shape
    rows, columns = offset.shape[1:3]
    half_x, half_y = (dilation_w * (kernel_w - 1)) // 2, (dilation_h * (kernel_h - 1)) // 2
    x = torch.arange(columns, device=offset.device).to(offset) * stride_w + (half_x - pad_w)
    y = torch.arange(rows, device=offset.device).to(offset) * stride_h + (half_y - pad_h)
    kernel = torch.tensor(
        [
            [column * dilation_w - half_x, row * dilation_h - half_y]
            for column in range(kernel_w)
            for row in range(kernel_h)
            if has_centre or (column, row) != (kernel_w // 2, kernel_h // 2)
        ],
        dtype=offset.dtype,
        device=offset.device,
    )
    points = len(kernel)
    moved = (offset.reshape(batch, rows, columns, group, points, 2) + kernel) * offset_scale
    across = moved[..., 0] + x[:, None, None]
    down = moved[..., 1] + y[:, None, None, None]
    grid = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * group, rows * columns, points, 2)
    maps = features.reshape(batch, height, width, group, group_channels).permute(0, 3, 4, 1, 2)
    samples = functional.grid_sample(
        maps.reshape(batch * group, group_channels, height, width),
        grid,
        mode='bilinear',
        padding_mode='zeros',
        align_corners=False,
    )
    weights = mask.reshape(batch, rows * columns, group, points).transpose(1, 2)
    sums = (samples * weights.reshape(batch * group, 1, rows * columns, points)).sum(-1)
    sums = sums.reshape(batch, group * group_channels, rows, columns)
    return sums.permute(0, 2, 3, 1).contiguous()


def dcnv4_forward(features: Tensor, offset_mask: Tensor, *settings: Any) -> Tensor:
    """DCNv4: `dcnv3_forward` of offsets and weights in one tensor, (B, h, w, 3 * G * P or more).

    Group by group x and y of P points, then their weights. `settings`: of `dcnv3_forward` from `kernel_h` to
    `offset_scale`, then `im2col_step`, and whether the middle is left out. Source: DCNv4 4b848f7, `DCNv4_op`.
    """
    (kernel_h, kernel_w), group, without_centre = settings[:2], settings[8], bool(settings[-1])
    points = kernel_h * kernel_w - without_centre
    of_groups = offset_mask[..., : 3 * group * points].unflatten(-1, (group, 3 * points))
    offset, mask = of_groups.split([2 * points, points], dim=-1)
    return dcnv3_forward(
        features, offset.flatten(-2), mask.flatten(-2), *settings[:-1], has_centre=not without_centre
    )


def attention_at_points(
    values: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Deformable DETR's extension (B, Q, N * D): weighted sums of bilinear samples at points of L maps.

    `values` (B, sum of h * w, N, D); `spatial_shapes` (L, 2) h, w; `locations` (B, Q, N, L, P, 2) x before y,
    shares of the sides, zeros beyond; `weights` (B, Q, N, L, P). N heads, P points.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(values, spatial_shapes, locations, weights)


def in_pictures(places: Tensor) -> Tensor:
    """Whether points (..., 2), in shares of a picture's sides, are strictly inside (...)."""
    return ((places > 0) & (places < 1)).all(-1)


def deformable_aggregation(
    features: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Sparse4D's operator (B, A, C): samples of instances' key points over all cameras and levels.

    Only points strictly inside of a picture count; cells beyond the map are 0. A instances, N cameras, L
    levels, S cells of all maps, G groups of channels. `features` (B, S, C), camera by camera, level by level,
    row by row; `spatial_shapes` (N, L, 2); `level_start_index` (N, L); `locations` (B, A, P, N, 2) u, v in
    shares of the picture; `weights` (B, A, P, N, L, G).
    """
    groups, mixed = weights.shape[-1], []
    for sample, places, shares in zip(features, locations, weights, strict=True):
        total, is_seen = sample.new_zeros(len(places), sample.shape[-1]), in_pictures(places)
        for camera, sizes in enumerate(spatial_shapes.tolist()):
            instances, points = is_seen[:, :, camera].nonzero(as_tuple=True)
            grid = 2 * places[instances, points, camera] - 1
            factors = shares[instances, points, camera]  # points in the picture, L, G
            for level, (height, width) in enumerate(sizes):
                begin = int(level_start_index[camera, level])
                cells = sample[begin : begin + height * width].t().reshape(1, -1, height, width)
                sampled = functional.grid_sample(cells, grid[None, None], align_corners=False)[0, :, 0].t()
                parts = sampled.unflatten(1, (groups, -1)) * factors[:, level, :, None]
                total = total.index_add(0, instances, parts.flatten(1))
        mixed.append(total)
    return torch.stack(mixed)


def aggregation_of_points(
    features: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """`deformable_aggregation` of Sparse4D v1 and v2 (B, P, C): a sum per point, maps of one size per level.

    `features` (B, N, S, C); `sizes` (L, 2); `starts` (L,); `locations` (B, P, N, 2); `weights`
    (B, P, N, L, G).
    """
    cameras, cells = features.shape[1:3]
    begins = starts + cells * torch.arange(cameras, device=starts.device)[:, None]
    return deformable_aggregation(
        features.flatten(1, 2),
        sizes.expand(cameras, -1, -1),
        begins,
        locations[:, :, None],
        weights[:, :, None],
    )


VENDORED_FUNCTIONS = {
    'DCNv3': ('DCNv3Function', dcnv3_forward),
    'DCNv4': ('DCNv4Function', dcnv4_forward),
    'MSDeformAttn': ('MSDeformAttnFunction', attention_at_points),
}
"""Layer of a repository -> its autograd function, and the stand-in."""


def notes_on(model: nn.Module) -> list[str]:
    """Sentences of a verdict about a model's classes that compute without their compiled kernel."""
    kinds = sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__)
    device = next((parameter.device.type for parameter in model.parameters()), 'cpu')
    notes = flash_attention_notes(model)
    for kind in kinds:
        is_plain = device == 'cpu' and kind.__name__ in MMCV_MODULES and kind.__module__.startswith('mmcv.')
        if kind.__name__ in VENDORED_FUNCTIONS:  # `DCNv3_pytorch` beside it never calls the function
            name, plain = VENDORED_FUNCTIONS[kind.__name__]
            function = getattr(sys.modules.get(kind.__module__), name, None)
            is_plain = getattr(function, 'apply', None) is plain  # see `patches_vendored`
        if is_plain:
            notes.append(
                f"{kind.__module__}.{kind.__qualname__} runs as mm2onnx's PyTorch version instead of its "
                'compiled operator, which needs a GPU'
            )
    return notes


KERNELS = ('flash_attn_unpadded_kvpacked_func', 'flash_attn_varlen_kvpacked_func', 'flash_attn_kvpacked_func')
"""Functions of flash_attn 1 and 2 with queries, and keys and values in one tensor."""
ARGUMENTS = ('q', 'kv', 'causal', 'key_padding_mask')
"""Arguments of the module around a kernel."""


def plain_attention(
    q: Tensor,
    kv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Attention (B, T, H, D) of queries (B, T, H, D) to keys and values (B, S, 2, H, D); NaN without keys.

    `causal`: query T - i sees the keys up to S - i, as in flash_attn 2.1. `key_padding_mask` (B, S) is true
    for visible keys. `softmax_scale` is D ** -0.5 by default.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    queries = q.transpose(1, 2) * scale
    keys, values = (part.transpose(1, 2) for part in kv.unbind(dim=2))
    scores = queries @ keys.transpose(-1, -2)
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None, None].bool(), float('-inf'))
    if causal:
        num_queries, num_keys = scores.shape[-2:]
        hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device)
        hidden = hidden.triu(num_keys - num_queries + 1)
        scores = scores.masked_fill(hidden, float('-inf'))
    return (scores.softmax(dim=-1) @ values).transpose(1, 2)


def calls_kernel(kind: type) -> bool:
    """Whether the `forward` of a class names one of `KERNELS`."""
    functions = [inspect.unwrap(kind.forward)]
    for cell in getattr(kind.forward, '__closure__', None) or ():  # mmcv's auto_fp16 keeps no `__wrapped__`
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            functions.append(cell.cell_contents)
    codes = [getattr(function, '__code__', None) for function in functions]
    return any(code is not None and not set(KERNELS).isdisjoint(code.co_names) for code in codes)


def use_plain_attention(model: nn.Module) -> list[str]:
    """Let modules that call a kernel of flash_attn compute by PyTorch; return the changed classes' names.

    ValueError: other arguments than flash_attn's own.
    """
    # the class of scripted modules has no `forward` of its own
    kinds = {type(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)}
    replaced = []
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        if kind.forward.__module__ == __name__ or not calls_kernel(kind):
            continue
        names = tuple(inspect.signature(inspect.unwrap(kind.forward)).parameters)[1:]
        if names[:2] != ARGUMENTS[:2] or set(names) - set(ARGUMENTS):
            raise ValueError(
                f'{kind.__module__}.{kind.__qualname__}.forward calls a kernel of flash_attn with the '
                f'arguments {", ".join(names)}; expected {", ".join(ARGUMENTS)}: write it with PyTorch '
                'operators'
            )
        kind.forward = _forward
        replaced.append(kind.__qualname__)
    return replaced


def flash_attention_notes(model: nn.Module) -> list[str]:
    """Sentences of a verdict about classes that `use_plain_attention` changed."""
    kinds = {type(module) for module in model.modules()}
    kinds = {kind for kind in kinds if inspect.getattr_static(kind, 'forward', None) is _forward}
    return [
        f"{kind.__module__}.{kind.__qualname__} computes by operators of PyTorch, in its inputs' type, and "
        f'not by a kernel of flash_attn, which needs a GPU and float16'
        for kind in sorted(kinds, key=lambda kind: kind.__qualname__)
    ]


def _forward(
    self: Any, q: Tensor, kv: Tensor, causal: bool = False, key_padding_mask: Tensor | None = None
) -> tuple[Tensor, None]:
    return plain_attention(q, kv, getattr(self, 'softmax_scale', None), causal, key_padding_mask), None
