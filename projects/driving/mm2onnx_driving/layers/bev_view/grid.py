"""The grid of a bird's-eye view: places of cells, their pillars in pictures, rotation.

Source: fundamentalvision/BEVFormer 66b65f3, `modules/encoder.py`, lines 47 to 149.
Glossary: N cameras, H, W rows and columns of the view, Q = H W cells, row by row, P points of a pillar on a
cell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
