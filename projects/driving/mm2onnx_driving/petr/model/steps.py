"""The steps of a frame on the layers of a head of PETR or PETRv2, ours or PETR's repository's.

Source: megvii-research/PETR f7525f9, `dense_heads/petr_head.py`, `dense_heads/petrv2_head.py`.
Glossary: N cameras (of PETRv2 also of the frame before), C channels, h, w feature map, D depth bins, R
queries, L layers of the decoder, K classes.
"""

from collections.abc import Sequence

import torch
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from mm2onnx_driving.layers.rays import depth_bins, point_encoding
from mm2onnx_driving.petr.model.positions import ray_codes
from mmdeploy_ext.base.taps import tap

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
