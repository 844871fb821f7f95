"""Functions of the plugin, under the names that exiawsh/StreamPETR has."""

import math

import torch


def inverse_sigmoid(values):
    """Return the logits of values, limited to 1e-5 and 1 - 1e-5."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=1e-5) / (1 - values).clamp(min=1e-5))


def pos2posemb1d(pos, num_pos_feats):
    """Return the sines and cosines of positions (..., 1)."""
    periods = 10000 ** (torch.arange(0, num_pos_feats, 2) / num_pos_feats)
    angles = pos * 2 * math.pi / periods
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def pos2posemb3d(pos, num_pos_feats):
    """Return those of y, x, z."""
    return torch.cat([pos2posemb1d(pos[..., axis, None], num_pos_feats) for axis in (1, 0, 2)], -1)


def nerf_positional_encoding(values):
    """Return sines and cosines at six frequencies."""
    return torch.cat([wave(values * 2**i) for i in range(6) for wave in (torch.sin, torch.cos)], -1)


def topk_gather(rows, indexes):
    """Return the chosen rows."""
    return torch.stack([sample[index] for sample, index in zip(rows, indexes[..., 0], strict=True)])


def transform_reference_points(points, pose):
    """Return points moved by a pose."""
    return points @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]


def memory_refresh(rows, prev_exists):
    """Return the rows, or zeros where a scene begins."""
    return rows * prev_exists.view(-1, *[1] * (rows.dim() - 1))


def locations(features, stride, height, width):
    """Return the centres (N, h, w, 2) of the cells, as parts of the picture."""
    rows, columns = (torch.arange(count) * stride + stride // 2 for count in features.shape[-2:])
    y, x = torch.meshgrid(rows / height, columns / width, indexing='ij')
    return torch.stack([x, y], -1).expand(len(features), -1, -1, -1)


def denormalize_bbox(codes, pc_range):
    """Return boxes (n, 9) of codes (n, 10)."""
    yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
    return torch.cat([codes[:, :3], codes[:, 3:6].exp(), yaw, codes[:, 8:]], -1)
