"""The steps of a frame on the layers of a head of PETR or PETRv2, ours or PETR's repository's.

Source: megvii-research/PETR f7525f9, `dense_heads/petr_head.py` (also `position_embeding`),
`dense_heads/petrv2_head.py`, `utils/positional_encoding.py` (`SinePositionalEncoding3D`).
Glossary: N cameras (of PETRv2 also of the frame before), h, w feature map, C channels, D depth bins, R
queries, L layers of the decoder, K classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import POSITIONAL_ENCODING
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from mm2onnx_driving.layers.query_decoder import (
    depth_bins,
    frustum_points,
    lidar_points,
    point_encoding,
    sine_encoding,
)
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# ---- codes of tokens' places: points along their rays, and counts of cameras, rows and columns


EPSILON = 1e-6


def token_corners(pad_shape: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the upper left corners (h w, 2) of the cells, x and y in padded pixels."""
    ys, xs = (
        torch.arange(cells).float() * float(pixels) / cells
        for pixels, cells in zip(pad_shape[:2], size, strict=True)
    )
    return torch.stack(torch.meshgrid(xs, ys, indexing='xy'), dim=-1).reshape(-1, 2)


def image_to_lidar(lidar2img: Sequence[np.ndarray]) -> Tensor:
    """Return the inverses (N, 4, 4), float32, each computed in its matrix's precision.

    Upstream has float64 for the present cameras, float32 for the frame before; near the border of the range
    their last bits matter.
    """
    return torch.from_numpy(np.stack([np.linalg.inv(np.asarray(m)).astype(np.float32) for m in lidar2img]))


def ray_codes(
    img2lidar: Tensor, corners: Tensor, depths: Tensor, position_range: Tensor, size: Sequence[int]
) -> Tensor:
    """Return the inverse sigmoids (N, 3 D, h, w) of the tokens' points in `position_range`.

    Args:
        img2lidar: (N, 4, 4), pixels times depth to the LiDAR frame, m.
        corners: (h w, 2) pixels, see `token_corners`.
        depths: (D,) m.
        position_range: x, y, z low, then high, m; points outside count as on its border.
        size: h, w.
    """
    cameras = img2lidar.shape[0]
    points = lidar_points(img2lidar.unsqueeze(0), frustum_points(corners.repeat(cameras, 1), depths))
    low, high = position_range.split(3)
    codes = inverse_sigmoid((points - low) / (high - low), eps=1e-5)
    return codes.reshape(cameras, *size, -1).permute(0, 3, 1, 2)


@registered_if_named(POSITIONAL_ENCODING)
class SinePositionalEncoding3D(BaseModule):
    """Sines and cosines of the counts of cameras, rows and columns without padding.

    Args:
        num_feats: numbers per count; half of them are sines.
        normalize: must be True (ConfigError): counts are divided by the last count.
    """

    def __init__(self, num_feats: int, normalize: bool = False, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if not normalize:
            raise ConfigError('SinePositionalEncoding3D: normalize=False is not supported; set it to True')
        self.num_feats = num_feats

    def forward(self, padding: Tensor) -> Tensor:
        """Return the code (1, N, 3 num_feats, h, w) of a mask (1, N, h, w), True where there is padding."""
        codes = []
        for axis in (1, 2, 3):
            counts = (~padding).float().cumsum(axis)
            last = counts.narrow(axis, counts.shape[axis] - 1, 1)
            shares = (counts / (last + EPSILON)).unsqueeze(-1)
            turns = sine_encoding(shares, self.num_feats)
            codes += [turns[..., 0::2], turns[..., 1::2]]
        return torch.cat(codes, dim=-1).permute(0, 1, 4, 2, 3)


# ---- frame

QUERY_FEATS = 128
"""Numbers per coordinate in the code of a query."""
CENTRE = (0, 1, 4)


def depths_of(head: nn.Module) -> Tensor:
    """Return the depths (D,) of each ray, m, ascending from `depth_start`."""
    end = float(head.position_range[3])
    return depth_bins(int(head.depth_num), float(head.depth_start), end, bool(head.LID))


def embed_rays(head: nn.Module, img2lidar: Tensor, corners: Tensor, size: Sequence[int]) -> Tensor:
    """Return the positions (N, C, h, w) by the rays, without PETRv2's gate and `embed_counts`.

    `img2lidar` (N, 4, 4) goes from pixels times depth to the present LiDAR frame, m; `corners` are (h w, 2)
    pixels.
    """
    device = img2lidar.device
    limits = torch.as_tensor(head.position_range, dtype=torch.float32, device=device)
    codes = ray_codes(img2lidar, corners.to(device), depths_of(head).to(device), limits, size)
    return tap('coords_pe', head.position_encoder(tap('ray_codes', codes)))


def embed_counts(head: nn.Module, padding: Tensor) -> Tensor:
    """Return the positions (N, C, h, w) by camera, row and column; `padding` is (N, h, w) bool."""
    counts = tap('sine', head.positional_encoding(padding.unsqueeze(0))[0])
    return tap('sin_pe', head.adapt_pos3d(counts))


def padding_mask(
    img_shapes: Sequence[Sequence[int]], pad_shape: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Return (N, h, w), True for cells with an upper left pixel outside of the picture."""
    mask = torch.ones(1, len(img_shapes), int(pad_shape[0]), int(pad_shape[1]))
    for camera, shape in enumerate(img_shapes):
        mask[0, camera, : int(shape[0]), : int(shape[1])] = 0
    return nn.functional.interpolate(mask, size=tuple(size))[0].bool()


def query_positions(head: nn.Module) -> Tensor:
    """Return the positions (R, C) of the queries, constant."""
    codes = point_encoding(head.reference_points.weight, QUERY_FEATS)
    return tap('query_embeds', head.query_embedding(codes))


def gated(head: nn.Module, rays: Tensor, tokens: Tensor) -> Tensor:
    """Return positions (N, C, h, w), in PETRv2 times a gate of the tokens."""
    return tap('fpe', head.fpe(rays, tokens)) if hasattr(head, 'fpe') else rays


def detect(
    head: nn.Module,
    features: Tensor,
    rays: Tensor,
    counts: Tensor,
    queries: Tensor,
    padding: Tensor | None,
    seconds: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Return logits (L, 1, R, K) and box codes (L, 1, R, 10) of feature maps (N, in_channels, h, w).

    Args:
        head: the head.
        features: maps of the neck.
        rays: of `embed_rays`, before the gate.
        counts: of `embed_counts`.
        queries: of `query_positions`.
        padding: (N, h, w), True for tokens without a picture, or None.
        seconds: see `predict`.
    """
    tokens = tap('x_proj', head.input_proj(features))
    positions = tap('pos_embed', gated(head, rays, tokens) + counts)
    return predict(head, run_decoder(head, tokens, positions, queries, padding), seconds)


def run_decoder(
    head: nn.Module, tokens: Tensor, positions: Tensor, queries: Tensor, padding: Tensor | None
) -> Tensor:
    """Return the outputs (L, 1, R, C) of the decoder's layers."""
    tokens, positions = (x.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(1) for x in (tokens, positions))
    query_pos = queries.unsqueeze(1)
    outputs = head.transformer.decoder(
        query=torch.zeros_like(query_pos),
        key=tokens,
        value=tokens,
        key_pos=positions,
        query_pos=query_pos,
        key_padding_mask=None if padding is None else padding.flatten().unsqueeze(0),
        reg_branch=None,
    )
    return tap('outs_dec', outputs.transpose(1, 2))


def predict(head: nn.Module, outputs: Tensor, seconds: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return logits (L, 1, R, K) and box codes (L, 1, R, 10) of the decoder's outputs (L, 1, R, C).

    Codes are x, y in m, log width, log length, z of the centre in m, log height, sine and cosine of the yaw,
    velocity x, y in m/s; `seconds` divides the displacements of PETRv2 (PETR: 1).
    """
    layers = range(len(outputs))
    logits = torch.stack([head.cls_branches[layer](outputs[layer]) for layer in layers])
    numbers = torch.stack([head.reg_branches[layer](outputs[layer]) for layer in layers])
    low, high = torch.as_tensor(head.pc_range, dtype=torch.float32, device=outputs.device).split(3)
    offsets = inverse_sigmoid(head.reference_points.weight, eps=1e-5)
    centre = (numbers[..., CENTRE] + offsets).sigmoid() * (high - low) + low
    columns = (centre[..., :2], numbers[..., 2:4], centre[..., 2:], numbers[..., 5:8])
    return logits, torch.cat([*columns, numbers[..., 8:] / seconds], dim=-1)
