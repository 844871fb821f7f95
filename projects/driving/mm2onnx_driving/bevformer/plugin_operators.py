"""BEVFormer's rotation and attentions as operators with plug-ins in TensorRT deployments.

Source of names and contracts: DerryHub/BEVFormer_tensorrt 303d314, det2trt/models/functions (no code).

Glossary: N cameras, Q cells of the view or queries, C channels, M heads, D = C / M, L levels of a camera's
feature maps, h, w their sizes, P points per level, Z points of a pillar, H, W rows and columns of the view.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm2onnx_driving import plugin_kernels
from mm2onnx_driving.layers.bev_sampling import SeenViews
from mm2onnx_driving.layers.bev_steps import rotate_view, rotation_in_graph
from mmdeploy_ext.upstream.operators.attention import attend
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, register


def _rotate(image: Tensor, angle: Tensor, center: Tensor, interpolation: int) -> Tensor:
    height, width = image.shape[1:]
    rotation = rotation_in_graph(angle, center, height, width)
    return rotate_view(image.flatten(1).t(), rotation, height, width).t().unflatten(1, (height, width))


def _attend(
    value: Tensor, spatial_shapes: Tensor, references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    levels, anchors = spatial_shapes.shape[0], references.shape[-1] // 2
    sizes = spatial_shapes.flip(1)[:, None, None]
    offsets = offsets.unflatten(-1, (levels, -1, anchors, 2))  # (B, Q, M, L, P / Z, Z, 2)
    places = references.unflatten(-1, (anchors, 2))[:, :, :, None, None]
    locations = (places + offsets / sizes).flatten(4, 5)
    weights = logits.softmax(-1).unflatten(-1, (levels, -1))
    areas = spatial_shapes[:, 0] * spatial_shapes[:, 1]
    return attend(value, spatial_shapes, areas.cumsum(0) - areas, locations, weights).unflatten(
        -1, value.shape[2:]
    )


ROTATE = register(
    Operator(
        'BevRotation',
        _rotate,
        inputs=dict(image='C H W', angle='', center='2'),
        outputs=('rotated',),
        example=lambda: (torch.rand(8, 5, 6), torch.tensor(10.0), torch.tensor([4.0, 3.0])),
        traceable=_rotate,
        plugin=Plugin(plugin_kernels.ROTATE, attributes=dict(interpolation='interpolation')),
    )
)
ATTENTION = register(
    Operator(
        'BevAttention',
        _attend,
        inputs=dict(
            value='B S M D',
            spatial_shapes='L 2',
            references='B Q 1 R',
            offsets='B Q M O',
            logits='B Q M W',
        ),
        outputs=('attended',),
        example=lambda: (
            torch.rand(2, 26, 3, 8),
            torch.tensor([[4, 5], [2, 3]]),
            torch.rand(2, 7, 1, 4),
            torch.rand(2, 7, 3, 2 * 4 * 2),
            torch.rand(2, 7, 3, 2 * 4),
        ),
        traceable=_attend,
        plugin=Plugin(plugin_kernels.ATTENTION),
    )
)
"""Operators with the inputs of `RotateTRT` and `MultiScaleDeformableAttnTRT`, see `kernels.py`; shapes are
int64.
"""


def turn_view(cells: Tensor, degrees: Tensor, center: Sequence[float], height: int, width: int) -> Tensor:
    """Return a bird's-eye view (Q, C), row by row, turned about a point; cells from outside are 0.

    `degrees` () is the change of the heading, counter-clockwise with row 0 on top; `center` x and y in cells
    from the first corner.
    """
    image = cells.t().reshape(-1, height, width)
    return ROTATE(image, degrees, cells.new_tensor(list(center)), plugin_kernels.NEAREST).flatten(1).t()


def attend_views(module: nn.Module, query: Tensor, position: Tensor, views: SeenViews) -> Tensor:
    """Return `TemporalSelfAttention` before its shortcut: (1, Q, C).

    Args:
        module: heads and linear layers are used.
        query: (1, Q, C), `position` not added.
        position: embedding of the cells, of the same shape.
        views: as in `sampling.attend_views`.
    """
    both = torch.cat([views.cells[:1], query + position], -1)
    per_view = (module.num_heads, 2, -1)
    offsets, logits = (
        layer(both)[0].unflatten(-1, per_view).permute(2, 0, 1, 3)  # (2, Q, M, P 2), (2, Q, M, P)
        for layer in (module.sampling_offsets, module.attention_weights)
    )
    values = module.value_proj(views.cells).unflatten(-1, (module.num_heads, -1))
    mixed = ATTENTION(values, torch.tensor([views.size]), views.places[:, :, None], offsets, logits)
    return module.output_proj(mixed.flatten(2).mean(0, keepdim=True))


def attend_cameras(
    module: nn.Module, query: Tensor, maps: Sequence[Tensor], places: Tensor, is_seen: Tensor
) -> Tensor:
    """Return `SpatialCrossAttention` before its shortcut: (1, Q, C).

    Args:
        module: its `deformable_attention` samples.
        query: (1, Q, C), positions not added.
        maps: of each level (N, C, h, w), embeddings of camera and level added.
        places: (N, Q, Z, 2) points of a pillar in each camera, x and y in shares of the picture.
        is_seen: (N, Q, Z) bool, inside the picture.
    """
    tokens = torch.cat([level.flatten(2) for level in maps], -1).transpose(1, 2)
    shapes = torch.tensor([level.shape[2:] for level in maps])
    mixed = _mixed(module.deformable_attention, tokens, query, shapes, places.flatten(2))
    hits = is_seen.any(-1).to(query.dtype)  # (N, Q)
    total = (mixed * hits[..., None]).sum(0, keepdim=True)
    return module.output_proj(total / hits.sum(0).clamp(min=1)[:, None])


def attend_view(module: nn.Module, query: Tensor, view: SeenViews) -> Tensor:
    """Return the decoder's deformable attention before its shortcut: (1, Q, C).

    `query` (1, Q, C) with positions; `view`: one view, and where each query looks.
    """
    return module.output_proj(_mixed(module, view.cells, query, torch.tensor([view.size]), view.places))


def _mixed(sampler: nn.Module, tokens: Tensor, query: Tensor, shapes: Tensor, places: Tensor) -> Tensor:
    values = sampler.value_proj(tokens).unflatten(-1, (sampler.num_heads, -1))
    offsets, logits = (
        layer(query).unflatten(-1, (sampler.num_heads, -1))
        for layer in (sampler.sampling_offsets, sampler.attention_weights)
    )
    if len(tokens) > 1:
        offsets, logits = (rows.expand(len(tokens), -1, -1, -1) for rows in (offsets, logits))
    return ATTENTION(values, shapes, places[:, :, None], offsets, logits).flatten(2)
