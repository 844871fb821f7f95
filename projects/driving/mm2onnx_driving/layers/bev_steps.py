"""BEVFormer from feature maps to predictions, on live modules.

Source: fundamentalvision/BEVFormer 66b65f3, `modules/{transformer,encoder,decoder}.py`,
`dense_heads/bevformer_head.py`.
Glossary: N cameras, H, W rows and columns of the bird's-eye view, Q = H W cells, row by row, C channels, R
queries of objects, L decoder layers, K classes, P points of a pillar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor

from mm2onnx_driving.layers import bev_sampling
from mm2onnx_driving.layers.bev_sampling import SeenViews
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.conditional_detr import among_themselves, run_layer

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn


# The grid of a bird's-eye view: places of cells, their pillars in pictures, rotation.
#
# Source: fundamentalvision/BEVFormer 66b65f3, `modules/encoder.py`, lines 47 to 149.
# Glossary: N cameras, H, W rows and columns of the view, Q = H W cells, row by row, P points of a pillar on
# a
# cell.


NEAREST_DEPTH = 1e-5
"""A point less far in front of a camera, m, is not in its picture."""


def cell_centres(height: int, width: int) -> Tensor:
    """Return x, y of the centres of the cells (Q, 2), in shares of the view's sides."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing='ij'
    )
    return torch.stack([x.flatten(), y.flatten()], -1)


def pillar_points(height: int, width: int, points: int, pc_range: Sequence[float]) -> Tensor:
    """Return the points of the pillars (Q, P, 4): x, y, z in the LiDAR frame, m, and 1, the lowest first.

    Lowest and highest point are half a metre inside of the range.
    """
    low, high = torch.tensor(pc_range).split(3)
    depth = float(pc_range[5] - pc_range[2])
    z = torch.linspace(0.5, depth - 0.5, points) / depth
    centres = cell_centres(height, width)
    shares = torch.cat(
        [centres[:, None].expand(-1, points, -1), z[None, :, None].expand(len(centres), -1, -1)], -1
    )
    return torch.cat([shares * (high - low) + low, torch.ones(len(centres), points, 1)], -1)


def project_pillars(points: Tensor, lidar2img: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return x, y (N, Q, P, 2) of points in the pictures, and whether they are inside (N, Q, P).

    Args:
        points: (Q, P, 4), see `pillar_points`.
        lidar2img: (N, 4, 4), LiDAR frame to pixels times depth, m.
        image_size: h, w of the padded pictures, pixels.

    Returns:
        x, y in shares of the picture, also outside (points behind the camera count as `NEAREST_DEPTH` in
            front), and True for points in front of the camera and strictly inside of its picture.
    """
    cameras = lidar2img.shape[0]
    projected = points.reshape(1, -1, 4) @ lidar2img.transpose(1, 2)
    projected = projected.reshape(cameras, *points.shape)
    depth = projected[..., 2]
    is_ahead = depth > NEAREST_DEPTH
    nearest = torch.full_like(depth, NEAREST_DEPTH)
    pixels = projected[..., :2] / torch.maximum(depth, nearest)[..., None]
    places = pixels / pixels.new_tensor([image_size[1], image_size[0]])
    x, y = places[..., 0], places[..., 1]
    return places, is_ahead & (x > 0) & (x < 1) & (y > 0) & (y < 1)


def rotated_cells(rotation: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the nearest source cell of each cell of a rotated view, (Q,) int64, and whether it exists, (Q,).

    `rotation` (2, 3) goes from x, y of a cell, in cells from the middle, and 1, to x, y of its source, -1 to
    1 (`runtime.bev_motion.bev_rotation`).
    """
    x = torch.arange(width, device=rotation.device) - width * 0.5 + 0.5
    y = torch.arange(height, device=rotation.device) - height * 0.5 + 0.5
    x, y = x[None], y[:, None]
    sources = []
    for axis, extent in ((0, width), (1, height)):
        share = rotation[axis, 0] * x + rotation[axis, 1] * y + rotation[axis, 2]
        source = ((share + 1) * extent - 1) / 2
        sources.append(source.round())  # half to even, as in torchvision
    column, row = sources
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    return (row * width + column).flatten().to(torch.int64), is_inside.flatten()


def rotate_view(view: Tensor, rotation: Tensor, height: int, width: int) -> Tensor:
    """Return a view (Q, channels) turned by `rotated_cells`; cells without a source are 0."""
    source, is_inside = rotated_cells(rotation, height, width)
    return view[source] * is_inside[:, None].to(view.dtype)


def rotation_in_graph(degrees: Tensor, center: Tensor, height: int, width: int) -> Tensor:
    """Return the matrix (2, 3) of `runtime.bev_motion.bev_rotation`, computed by a graph in float32.

    float32 moves sources of cells by 1e-5 cells, up to 100 cells away. `degrees` () is the change of the
    heading, `center` (2,) x and y in cells from the first corner.
    """
    radians = (360 * (degrees / 360).round() - degrees) * (torch.pi / 180)
    cosine, sine = radians.cos(), radians.sin()
    x, y = (center - center.new_tensor([width * 0.5, height * 0.5])).unbind()
    rows = [
        torch.stack([cosine, sine, x - x * cosine - y * sine]) / (0.5 * width),
        torch.stack([-sine, cosine, y + x * sine - y * cosine]) / (0.5 * height),
    ]
    return torch.cat(rows).reshape(2, 3)  # onnx takes stacked rows for a shape, and refuses what reads them


CENTRE = (0, 1, 4)
"""Columns of a box with its centre x, y, z; columns 2, 3 and 5 are the sizes."""


@dataclasses.dataclass(frozen=True)
class LastView:
    """The bird's-eye view of the frame before, as a frame uses it.

    Attributes:
        cells: (1, Q, C), turned to the present heading with `rotate_prev_bev`.
        shift: (2,) x and y from a cell's own place to its place in it, shares of its sides.
        exists: (1,) 1; 0 at the first frame of a scene, where `cells` may be any finite numbers.
        shifts_present: `shift` also moves where a cell looks in the present view, at the first frame, too.
    """

    cells: Tensor
    shift: Tensor
    exists: Tensor
    shifts_present: bool = False


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects in a view.

    Attributes:
        logits: (L, 1, R, K) of all decoder layers.
        boxes: (L, 1, R, 10): x, y (m), log of width and length, z of the centre (m), log of the height, sine
            and cosine of the yaw, velocity in x and y (m/s).
        queries: (1, R, C) after the last layer.
        places: (1, R, 3) x, y, z of the last layer in shares of the range.
    """

    logits: Tensor
    boxes: Tensor
    queries: Tensor
    places: Tensor


def with_embeddings(transformer: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Add level embeddings to maps (N, C, h, w)."""
    embedded = []
    for level, features in enumerate(maps):
        if transformer.use_cams_embeds:
            features = features + transformer.cams_embeds[:, :, None, None]
        embedded.append(features + transformer.level_embeds[level][None, :, None, None])
    return embedded


def cell_queries(head: nn.Module, can_bus: Tensor) -> tuple[Tensor, Tensor]:
    """Return the queries of the cells before the encoder and the embeddings of their places, (1, Q, C) both.

    `can_bus` (18,) is the change of position since the last frame (m, 3 numbers), orientation (4: a
    quaternion w, x, y, z, or w four times), acceleration, rotation rate and velocity (3 each), heading,
    radians, and its change, degrees.
    """
    queries = head.bev_embedding.weight[None]
    if head.transformer.use_can_bus:
        queries = queries + head.transformer.can_bus_mlp(can_bus[None])[:, None]
    position = head.positional_encoding
    columns, rows = position.col_embed.weight[: head.bev_w], position.row_embed.weight[: head.bev_h]
    grid = [
        columns[None].expand(head.bev_h, -1, -1),
        rows[:, None].expand(-1, head.bev_w, -1),
    ]
    return queries, torch.cat(grid, -1).flatten(0, 1)[None]


def encode_view(
    head: nn.Module,
    maps: Sequence[Tensor],
    can_bus: Tensor,
    lidar2img: Tensor,
    image_size: tuple[int, int],
    last: LastView,
    operators: ModuleType = bev_sampling,
) -> Tensor:
    """Return the bird's-eye view (1, Q, C) of a frame.

    Args:
        head: a `BevHead`.
        maps: the neck's maps of each level (N, C, h, w).
        can_bus: (18,), as in `cell_queries`.
        lidar2img: (N, 4, 4), LiDAR to pixels of the padded pictures times depth, m.
        image_size: h, w of the pictures, pixels.
        last: the view before.
        operators: module with the attentions.
    """
    transformer, encoder, size = head.transformer, head.transformer.encoder, (head.bev_h, head.bev_w)
    maps = with_embeddings(transformer, maps)
    queries, position = cell_queries(head, can_bus)
    device = queries.device
    points = pillar_points(*size, encoder.num_points_in_pillar, encoder.pc_range).to(device)
    places, is_seen = project_pillars(points, lidar2img, image_size)
    centres = cell_centres(*size).to(device)
    if last.shifts_present:
        looked_at = (centres + last.shift).expand(2, -1, -1)
    else:
        looked_at = torch.stack([centres + last.shift * last.exists, centres])
    remembered = torch.cat([last.cells, queries]) * last.exists
    view = tap('bev_query', queries)
    for number, layer in enumerate(encoder.layers):

        def attend_time(module: nn.Module, cells: Tensor) -> Tensor:
            views = SeenViews(remembered + cells * (1 - last.exists), looked_at, size)
            return operators.attend_views(module, cells, position, views)

        def attend_space(module: nn.Module, cells: Tensor) -> Tensor:
            return operators.attend_cameras(module, cells, maps, places, is_seen)

        view = tap(
            f'enc{number}', run_layer(layer, view, dict(self_attn=attend_time, cross_attn=attend_space))
        )
    return view


def decode_objects(head: nn.Module, view: Tensor, operators: ModuleType = bev_sampling) -> Objects:
    """Return the objects in a view (1, Q, C)."""
    transformer, size = head.transformer, (head.bev_h, head.bev_w)
    position, objects = head.query_embedding.weight[None].chunk(2, -1)
    reference = transformer.reference_points(position).sigmoid()  # (1, R, 3)
    low, high = view.new_tensor(head.pc_range).split(3)
    logits, boxes = [], []
    for number, layer in enumerate(transformer.decoder.layers):

        def attend(module: nn.Module, queries: Tensor, places: Tensor = reference[..., :2]) -> Tensor:
            return operators.attend_view(module, queries + position, SeenViews(view, places, size))

        objects = tap(
            f'dec{number}',
            run_layer(layer, objects, dict(self_attn=among_themselves(position), cross_attn=attend)),
        )
        codes = head.reg_branches[number](objects)
        centre = (codes[..., CENTRE] + inverse_sigmoid(reference)).sigmoid()
        metres = centre * (high - low) + low
        logits.append(head.cls_branches[number](objects))
        boxes.append(torch.cat([metres[..., :2], codes[..., 2:4], metres[..., 2:], codes[..., 5:]], -1))
        reference = centre
    return Objects(torch.stack(logits), torch.stack(boxes), objects, reference)
