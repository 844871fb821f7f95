"""The bird's-eye view of a frame and the objects in it, as upstream computes them, in PyTorch.

A graph computes the same by other code, `families/parts/bev_queries.py` and `bev_grid.py`: so a proof
compares two forms.

Glossary: N cameras, H, W rows and columns of the view, Q = H W cells, row by row, C channels, Z points of a
pillar, L decoder layers, R queries of objects, K classes, h, w feature map.

Source of the algorithm: fundamentalvision/BEVFormer 66b65f3, `modules/{transformer,encoder,decoder}.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn
from torchvision.transforms import functional

from mmdeploy_ext.core.taps import tap

NEAREST_DEPTH = 1e-5
"""A point less far in front of a camera, in m, is not in its picture."""
DX, DY, YAW_RAD, TURN_DEG = 0, 1, 16, 17
"""Entries of the motion: how far the car went since the last frame along x and y of the map, m, its heading
in the map, rad, and the change of the heading in degrees, near 360 or -360 where it crosses 0."""


def turned(view: Tensor, motion: np.ndarray, center: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return the last view (Q, 1, C) turned by the motion (18,) about a point, as (1, Q, C).

    With row 0 on top it turns counter-clockwise by the degrees of the motion. `center` is x and y of the
    point, cells from the first corner; `size` is (H, W).
    """
    picture = view[:, 0].t().reshape(-1, *size)
    picture = functional.rotate(picture, float(motion[TURN_DEG]), center=list(center))
    return picture.flatten(1).t()[None]


def shift_of(motion: np.ndarray, extent: Sequence[float]) -> np.ndarray:
    """Return the way of the car, x to the right and y ahead, in shares of the sides of the view.

    `motion` is the record (18,) since the last frame, `extent` the width and height of the view, m. The way
    (2,) is computed from its length and direction.
    """
    length = math.hypot(motion[DX], motion[DY])
    direction = math.degrees(motion[YAW_RAD]) - math.degrees(math.atan2(motion[DY], motion[DX]))
    x, y = length * math.sin(math.radians(direction)), length * math.cos(math.radians(direction))
    return np.array([x / extent[0], y / extent[1]])


def cells_of(size: tuple[int, int]) -> Tensor:
    """Return x, y of the centres of the cells (Q, 2), in shares of the view's sides; `size` is (H, W)."""
    height, width = size
    y = (torch.linspace(0.5, height - 0.5, height) / height).repeat_interleave(width)
    x = (torch.linspace(0.5, width - 0.5, width) / width).repeat(height)
    return torch.stack([x, y], 1)


def pillars_in_pictures(
    encoder: nn.Module, lidar2img: Tensor, picture: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return x, y (N, Q, Z, 2) of the pillars' points in shares of the pictures, and (N, Q, Z) bool.

    The latter is True for a point that is in the picture of the camera.

    `encoder` is a `BEVFormerEncoder`, `lidar2img` (N, 4, 4) from the LiDAR frame to pixels, `picture` the
    height and width of the padded pictures, px, and `size` (H, W).
    """
    low, high = (lidar2img.new_tensor(bound) for bound in (encoder.pc_range[:3], encoder.pc_range[3:]))
    points, depth = encoder.num_points_in_pillar, encoder.pc_range[5] - encoder.pc_range[2]
    centres = cells_of(size).to(lidar2img)
    heights = torch.linspace(0.5, depth - 0.5, points).to(lidar2img) / depth
    shares = torch.stack([torch.cat([centres, height.expand(len(centres), 1)], 1) for height in heights], 1)
    metres = shares * (high - low) + low
    homogeneous = torch.cat([metres, torch.ones_like(metres[..., :1])], -1)
    projected = torch.einsum('nij,qzj->nqzi', lidar2img, homogeneous)
    z = projected[..., 2:3]
    places = projected[..., :2] / torch.maximum(z, torch.full_like(z, NEAREST_DEPTH))
    places = places / places.new_tensor([picture[1], picture[0]])
    inside = (places > 0).all(-1) & (places < 1).all(-1) & (z[..., 0] > NEAREST_DEPTH)
    return places, inside


def run_encoder(
    head: nn.Module,
    maps: Sequence[Tensor],
    motion: np.ndarray,
    lidar2img: Tensor,
    picture: tuple[int, int],
    prev_bev: Tensor | None,
) -> Tensor:
    """Return the bird's-eye view (1, Q, C).

    Args:
        head: a `BEVFormerHead`.
        maps: feature maps of each level (N, C, h, w).
        motion: (18,) record of the car, as `bev_motion.motion_since` returns it: only position and heading in
            degrees are differences to the last frame.
        lidar2img: (N, 4, 4).
        picture: height and width of the padded pictures, px.
        prev_bev: the last view (Q, 1, C); None at the first frame of a scene.
    """
    transformer, size = head.transformer, (head.bev_h, head.bev_w)
    levels = []
    for number, features in enumerate(maps):
        if transformer.use_cams_embeds:
            features = features + transformer.cams_embeds[:, :, None, None]
        levels.append(features + transformer.level_embeds[number][None, :, None, None])
    queries = head.bev_embedding.weight[None]
    if transformer.use_can_bus:
        numbers = torch.from_numpy(np.float32(motion)).to(queries)
        queries = queries + transformer.can_bus_mlp(numbers[None])[:, None]
    padding = queries.new_zeros(1, *size)
    position = head.positional_encoding(padding).flatten(2).transpose(1, 2)
    places, is_seen = pillars_in_pictures(transformer.encoder, lidar2img, picture, size)
    centres = cells_of(size).to(queries)
    last, shift = None, np.zeros(2)
    if prev_bev is not None:
        last = prev_bev.transpose(0, 1)
        if transformer.rotate_prev_bev:
            last = turned(prev_bev, motion, transformer.rotate_center, size)
        if transformer.use_shift:
            low, high = np.array(head.pc_range[:2]), np.array(head.pc_range[3:5])
            shift = shift_of(motion, high - low)
    moved = centres + torch.from_numpy(np.float32(shift)).to(centres)
    view = tap('bev_query', queries)
    for number, layer in enumerate(transformer.encoder.layers):
        view = tap(
            f'enc{number}',
            _encoder_layer(
                layer,
                view,
                position,
                (last, queries) if last is not None else None,
                torch.stack([moved, centres]),
                (levels, places, is_seen),
                size,
            ),
        )
    return view


def _encoder_layer(
    layer: nn.Module,
    cells: Tensor,
    position: Tensor,
    remembered: tuple[Tensor, Tensor] | None,
    looked_at: Tensor,
    cameras: tuple[Sequence[Tensor], Tensor, Tensor],
    size: tuple[int, int],
) -> Tensor:
    """Run one layer; `remembered` is the last view and the first query, None at the first frame."""
    attentions, norms, ffns = iter(layer.attentions), iter(layer.norms), iter(layer.ffns)
    for step in layer.operation_order:
        if step == 'norm':
            cells = next(norms)(cells)
        elif step == 'ffn':
            cells = next(ffns)(cells)
        elif step == 'self_attn':
            views = torch.cat(remembered if remembered is not None else (cells, cells))
            cells = cells + next(attentions)(cells, position, views, looked_at, size)
        else:
            cells = cells + next(attentions)(cells, *cameras)
    return cells


def run_decoder(head: nn.Module, view: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (L, 1, R, K) and box codes (L, 1, R, 10) of all layers, from the view (1, Q, C).

    A code is x, y (m), logarithms of width and length, z of the centre (m), logarithm of the height, sine and
    cosine of the yaw, and velocity x, y (m/s). The yaw is from -y clockwise; of a model that was trained with
    boxes of mmdet3d 1.x it is from x counter-clockwise, and length comes before width.
    """
    transformer = head.transformer
    position, objects = head.query_embedding.weight[:, None].chunk(2, -1)  # sequence first, as mmcv has it
    reference = transformer.reference_points(position).sigmoid().transpose(0, 1)  # (1, R, 3)
    shapes = torch.tensor([[head.bev_h, head.bev_w]], device=view.device)
    starts = torch.zeros(1, dtype=torch.int64, device=view.device)
    range_ = view.new_tensor(head.pc_range)
    logits, boxes = [], []
    for number, layer in enumerate(transformer.decoder.layers):
        objects = layer(
            objects,
            key=None,
            value=view.transpose(0, 1),
            query_pos=position,
            reference_points=reference[:, :, None, :2],
            spatial_shapes=shapes,
            level_start_index=starts,
        )
        output = tap(f'dec{number}', objects.transpose(0, 1))
        codes = head.reg_branches[number](output).clone()
        places = inverse_sigmoid(reference)
        codes[..., :2] = (codes[..., :2] + places[..., :2]).sigmoid()
        codes[..., 4:5] = (codes[..., 4:5] + places[..., 2:]).sigmoid()
        reference = torch.cat([codes[..., :2], codes[..., 4:5]], -1)
        for column, axis in ((0, 0), (1, 1), (4, 2)):
            low, high = range_[axis], range_[axis + 3]
            codes[..., column] = codes[..., column] * (high - low) + low
        logits.append(head.cls_branches[number](output))
        boxes.append(codes)
    return torch.stack(logits), torch.stack(boxes)
