"""VAD from a bird's-eye view to lines, trajectories and plans, on live modules.

Source: hustvl/VAD 1688c4b, `VAD/{VAD_head,VAD_transformer}.py`.
Glossary: Q cells of the view, C channels, L decoder layers, R objects, M modes, T steps, V lines of P points;
places are x, y in shares of the view's sides.
"""

import dataclasses
from types import ModuleType

import torch
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from mm2onnx_driving.layers import bev_sampling
from mm2onnx_driving.layers.bev_sampling import SeenViews
from mm2onnx_driving.layers.bev_steps import Objects, decode_objects
from mmdeploy_ext.upstream.models.conditional_detr import among_themselves, attend_to, run_layer

OUTPUTS = (
    'all_cls_scores', 'all_bbox_preds', 'all_traj_preds', 'all_traj_cls_scores', 'map_all_cls_scores',
    'map_all_bbox_preds', 'map_all_pts_preds', 'ego_fut_preds',
)  # fmt: skip
"""Upstream's names, in the order of `predict`."""
LINE_BOUNDS = OUTPUTS.index('map_all_bbox_preds')


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines in a view.

    Attributes:
        logits: (L, 1, V, K) of all decoder layers.
        places: (L, 1, V, P, 2).
        tokens: (1, V, C) after the last layer.
        nearest: (1, V, 2), the last layer's point that is nearest to the corner of the least x, y.
    """

    logits: Tensor
    places: Tensor
    tokens: Tensor
    nearest: Tensor


def decode_lines(head: nn.Module, view: Tensor, operators: ModuleType = bev_sampling) -> Lines:
    """Return the lines in a view (1, Q, C)."""
    transformer, size = head.transformer, (head.bev_h, head.bev_w)
    count, points = head.map_instance_embedding.num_embeddings, head.map_pts_embedding.num_embeddings
    embedding = head.map_pts_embedding.weight[None] + head.map_instance_embedding.weight[:, None]
    position, queries = embedding.flatten(0, 1)[None].chunk(2, -1)
    reference = transformer.map_reference_points(position).sigmoid()
    logits, places = [], []
    for number, layer in enumerate(transformer.map_decoder.layers):

        def attend(module: nn.Module, queries: Tensor, reference: Tensor = reference) -> Tensor:
            return operators.attend_view(module, queries + position, SeenViews(view, reference, size))

        queries = run_layer(layer, queries, dict(self_attn=among_themselves(position), cross_attn=attend))
        reference = (head.map_reg_branches[number](queries) + inverse_sigmoid(reference)).sigmoid()
        places.append(reference.unflatten(1, (count, points)))
        logits.append(head.map_cls_branches[number](queries.unflatten(1, (count, points)).mean(2)))
    tokens = head.lane_encoder(queries.unflatten(1, (count, points)))
    first = length(places[-1]).argmin(-1)[..., None, None].expand(-1, -1, 1, 2)
    return Lines(torch.stack(logits), torch.stack(places), tokens, places[-1].gather(2, first)[:, :, 0])


def length(vectors: Tensor) -> Tensor:
    return (vectors[..., 0] ** 2 + vectors[..., 1] ** 2).sqrt()


def bounds_of(places: Tensor) -> Tensor:
    """Return centre x, y, width and height (..., 4) of lines (..., P, 2)."""
    low, high = places.amin(-2), places.amax(-2)
    return torch.cat([(low + high) / 2, high - low], -1)


def run_decoder(
    decoder: nn.Module,
    queries: Tensor,
    tokens: Tensor,
    positions: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
) -> Tensor:
    """Return queries that attended to tokens; `positions` of both, `mask` as `attend_to`."""
    of_queries, of_tokens = positions

    def attend(module: nn.Module, asking: Tensor) -> Tensor:
        return attend_to(module, asking + of_queries, tokens + of_tokens, tokens, mask)

    for layer in decoder.layers:
        queries = run_layer(layer, queries, dict(cross_attn=attend))
    return queries


def predict_motion(head: nn.Module, objects: Objects, lines: Lines) -> Tensor:
    """Return the tokens (1, R, M, 2 C) of the modes of objects.

    The modes attend to each other, then, object by object, to lines that are sure and near, and to a token of
    zeros beside them.
    """
    modes, centres = head.motion_mode_query.weight, objects.places[..., :2]
    queries = (objects.queries[:, :, None] + modes).flatten(1, 2)
    position = head.pos_mlp_sa(centres).repeat_interleave(len(modes), 1)
    among = run_decoder(head.motion_decoder, queries, queries, (position, position))
    queries = among[0].unflatten(0, (-1, len(modes)))  # (R, M, C)
    apart = lines.nearest - centres[0][:, None]  # (R, V, 2)
    unsure = lines.logits[-1].sigmoid().amax(-1) <= head.map_thresh
    mask = unsure | (length(apart) > head.dis_thresh)
    mask = torch.cat([mask, torch.zeros_like(mask[:, :1])], 1)[:, None, None]
    apart = torch.cat([apart, torch.ones_like(apart[:, :1])], 1)
    tokens = torch.cat([lines.tokens, torch.zeros_like(lines.tokens[:, :1])], 1)
    positions = head.pos_mlp(torch.zeros_like(apart[:1, :1])), head.pos_mlp(apart)
    seen = run_decoder(head.motion_map_decoder, queries, tokens, positions, mask)
    return torch.cat([queries, seen], -1)[None]


def predict_plans(head: nn.Module, objects: Objects, lines: Lines, motion: Tensor) -> Tensor:
    """Return the steps (1, commands, T, 2), m, of the plan of each command."""
    agents = head.agent_fus_mlp(motion.flatten(2))
    here, centres = torch.zeros_like(lines.nearest[:, :1]), objects.places[..., :2]
    positions = head.ego_agent_pos_mlp(here), head.ego_agent_pos_mlp(centres)
    by_agents = run_decoder(head.ego_agent_decoder, head.ego_query.weight[None], agents, positions)
    positions = head.ego_map_pos_mlp(here), head.ego_map_pos_mlp(lines.nearest)
    by_lines = run_decoder(head.ego_map_decoder, by_agents, lines.tokens, positions)
    steps = head.ego_fut_decoder(torch.cat([by_agents, by_lines], -1))
    return steps.reshape(1, head.ego_fut_mode, -1, 2)


def predict(head: nn.Module, view: Tensor, operators: ModuleType = bev_sampling) -> tuple[Tensor, ...]:
    """Return `OUTPUTS` of a view (1, Q, C): the trajectories of the last layer stand for all layers."""
    objects, lines = decode_objects(head, view, operators), decode_lines(head, view, operators)
    motion = predict_motion(head, objects, lines)
    steps, scores = head.traj_branches[0](motion), head.traj_cls_branches[0](motion)[..., 0]
    layers = len(objects.logits)
    return (
        objects.logits,
        objects.boxes,
        steps[None].repeat(layers, 1, 1, 1, 1),
        scores[None].repeat(layers, 1, 1, 1),
        lines.logits,
        bounds_of(lines.places),
        lines.places,
        predict_plans(head, objects, lines, motion),
    )
