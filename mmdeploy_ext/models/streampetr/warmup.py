"""A start for small models: before training, the cross attention learns where 3D points are in the images.

Between random encodings of rays and points the attention is blind, and thousands of iterations pass until it
is not. It lacks geometry alone, which needs no images: points are drawn, projected, and each query is
taught to look at the tokens around its point. Differs from upstream, which has nothing of the kind.

Glossary: B batch, N cameras, H, W image in px, C channels, h, w feature map, T tokens, n points, R
calibrations.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.parallel import is_module_wrapper
from mmcv.runner import HOOKS, Hook
from torch import Tensor, nn
from torch import distributed as dist

from mmdeploy_ext.models.catalogue import registered_if_named

MIN_DEPTH = 0.5
"""Depth in m from which on a camera sees a point."""
MAX_TURN = 0.4
"""Largest angle by which a calibration is turned, rad."""


@registered_if_named(HOOKS)
class GeometryWarmupHook(Hook):
    """Run `warm_up` before the first iteration of a new run, with the calibrations of its batch.

    The arguments are those of `warm_up`: the number of steps (0 for no warm-up), the learning rate, and the
    points of a step.
    """

    def __init__(self, iters: int = 800, lr: float = 1e-3, num_points: int = 256) -> None:
        self.iters, self.lr, self.num_points = iters, lr, num_points

    def before_train_iter(self, runner: Any) -> None:
        """Warm up the head of the runner's detector; all ranks then take the parameters of rank 0."""
        if runner.iter > 0 or not self.iters:
            return
        model = runner.model.module if is_module_wrapper(runner.model) else runner.model
        head = model.pts_bbox_head
        batch = runner.data_batch
        lidar2img, intrinsics = (
            batch[key].data[0].flatten(0, 1).to(head.coords_d) for key in ('lidar2img', 'intrinsics')
        )
        pad_shape = batch['img_metas'].data[0][0][0]['pad_shape'][0]
        losses = warm_up(head, lidar2img, intrinsics, pad_shape, self.iters, self.lr, self.num_points)
        runner.logger.info(
            'geometry warm-up, %d steps: cross entropy %.3f -> %.3f', self.iters, losses[0], losses[-1]
        )
        if dist.is_available() and dist.is_initialized():
            for parameter in head.parameters():
                dist.broadcast(parameter.data, 0)


def footprint(
    points: Tensor, lidar2img: Tensor, centers: Tensor, size: Sequence[int], sigma: float
) -> Tensor:
    """Return how much each token shows of each point (n, 3) m, LiDAR frame: (n, N h w).

    It is a Gaussian of `sigma` px, not much less than the distance of tokens, around the projection by
    `lidar2img` (N, 4, 4), whose sum over the tokens is 1; zeros where no camera sees the point. Centres
    (h w, 2) px are those of one camera's tokens, `size` the image's height and width in px.
    """
    projected = torch.einsum('kij,nj->nki', lidar2img, nn.functional.pad(points, (0, 1), value=1.0))
    depth = projected[..., 2]
    pixels = projected[..., :2] / depth.clamp(min=MIN_DEPTH).unsqueeze(-1)
    border = pixels.new_tensor([size[1], size[0]])
    inside = (depth > MIN_DEPTH) & (pixels > 0).all(-1) & (pixels < border).all(-1)
    squared = (pixels.unsqueeze(2) - centers).square().sum(-1)
    weights = torch.exp(-squared / (2 * sigma**2)) * inside.unsqueeze(-1)
    weights = weights.flatten(1)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def attention_logits(attention: nn.MultiheadAttention, query: Tensor, key: Tensor) -> Tensor:
    """Return the logits (B, heads, n, T) of `query` (B, n, C) and `key` (B, T, C)."""
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = nn.functional.linear(query, weight[:width], bias[:width])
    key = nn.functional.linear(key, weight[width : 2 * width], bias[width : 2 * width])
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return query @ key.transpose(-1, -2) / math.sqrt(width / heads)


def random_turn() -> Tensor:
    """Return a 4x4 rotation about z by at most `MAX_TURN` rad to either side."""
    angle = (torch.rand(()) * 2 - 1) * MAX_TURN
    turn = torch.eye(4)
    turn[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    return turn


def draw_points(head: nn.Module, count: int) -> Tensor:
    """Draw points (count, 3) in m, LiDAR frame, evenly in direction, distance and height.

    They are from 2 m to the largest x of the boxes' range away, at z from -3 to 1, clipped to the range.
    """
    low, high = head.pc_range[:3], head.pc_range[3:]
    distance = 2 + torch.rand(count) * (high[0].item() - 2)
    angle = torch.rand(count) * 2 * math.pi
    height = torch.rand(count) * 4 - 3
    points = torch.stack([distance * angle.cos(), distance * angle.sin(), height], dim=-1).to(low)
    return points.clamp(low, high)


def warm_up(
    head: nn.Module,
    lidar2img: Tensor,
    intrinsics: Tensor,
    pad_shape: Sequence[int],
    iters: int,
    lr: float = 1e-3,
    num_points: int = 256,
) -> list[float]:
    """Teach the cross attention of every layer to look at the projections of the queries' points.

    The encoders of positions, which it looks by, are trained with it.

    There are R calibrations, `lidar2img` and `intrinsics` (R, N, 4, 4), which take turns, each turned about z
    anew; `pad_shape` is (H, W, ...) of the images, px; `lr` is Adam's, `num_points` are drawn per step, of
    which there are `iters`. Returned is the loss of each step: the mean cross entropy in nats. The head is
    left without gradients.
    """
    attentions = [layer.attentions[1].attn for layer in head.transformer.decoder.layers]  # cross attention
    modules = [head.position_encoder, head.query_embedding, head.featurized_pe, *attentions]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    cameras = lidar2img.shape[1]
    centers = head.token_centers(pad_shape, 1)
    grid = (int(pad_shape[0]) // head.stride, int(pad_shape[1]) // head.stride)
    low, high = head.pc_range[:3], head.pc_range[3:]
    losses = []
    for step in range(iters):
        rig = slice(step % len(lidar2img), step % len(lidar2img) + 1)
        turned = lidar2img[rig] @ random_turn().to(lidar2img)
        points = draw_points(head, num_points)
        target = footprint(points, turned[0], centers, pad_shape, sigma=0.6 * head.stride)
        raw, cone = head.embed_positions(turned, intrinsics[rig], pad_shape)
        noise = torch.randn(1, cameras, head.embed_dims, *grid, device=points.device)
        tokens, positions = head.align_tokens(noise, raw, cone)
        query_pos = head.queries_at(((points - low) / (high - low)).unsqueeze(0))[1]
        content = torch.randn_like(query_pos)
        loss = 0.0
        for attention in attentions:
            logits = attention_logits(attention, content + query_pos, tokens + positions)
            entropy = -(logits.log_softmax(-1) * target).sum(-1)
            loss = loss + entropy[..., target.sum(1) > 0].mean() / len(attentions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    head.zero_grad(set_to_none=True)  # a run that accumulates gradients does not begin with zeroing them
    return losses
