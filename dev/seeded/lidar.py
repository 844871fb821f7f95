"""Seeded rules of LiDAR detectors and BEVFusion: empty cells score low.

Glossary: B sweeps, P points of D values, C channels, H, W rows and columns of a bird's-eye map.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dev.seeded.by_name import fill_sparse_module
from dev.seeded.dense import DELTA_TARGET
from dev.seeded.layers import (
    Target,
    calibrate_norms,
    fill_network,
    norms_of,
    outputs_of,
    outputs_of_all,
    rescale,
)
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.upstream.compat import single_thread

if TYPE_CHECKING:
    from mmdeploy_ext.families.common.lidar_parts import Parts

SWEEPS = 3
"""Number of generated sweeps for statistics."""
RESIDUAL = 0.1
"""Scale of the last normalisation of residual blocks; see `dense.NetworkCalibration`."""
EMPTY_LOGIT, BEST_LOGIT = -5.0, 0.0
"""Highest logit of an empty map, and the logit that `BEST_ANCHORS` of each sweep exceed."""
MAX_LOGITS = 3.0, 4.0
"""Highest logits in the first and last channel; other sweeps may have twice as much below a score of 1."""
BEST_ANCHORS = 200
"""The best anchors of a sweep."""
CELLS_PER_BEST = 50
"""Cells per best one: toys have few."""
BOX_CELLS = 500
"""Cells of the best scores, for the targets of boxes."""
CLASS_LAYERS = r'(.*\.)?(conv_cls|(heatmap|cls_head)\.\d+)'
"""Names of the last layers of class logits."""
BOX_TARGETS = {
    r'(.*\.)?conv_reg': DELTA_TARGET,
    r'(.*\.)?conv_dir_cls': Target(0.0, 1.0),
    r'.*\.reg\.\d+': Target(0.5, 0.3),
    r'.*\.height\.\d+': Target(-1.0, 0.5),
    r'.*\.dim\.\d+': Target(0.6, 0.4),
    r'.*\.rot\.\d+': Target(0.0, 1.0),
    r'.*\.vel\.\d+': Target(0.0, 1.0),
}
"""Pattern of last layers of boxes -> target at the best cells."""
BRANCH = r'((?:task_heads|heads)\.\d+|)'
"""Prefix of layers with common cells, or ''."""
FRAMES = 2
"""Number of generated frames for statistics of BEVFusion."""
DEPTH_DEVIATION = 2.0
"""Deviation of depth logits: a pixel's feature goes to a few bins."""
HEAT_TARGETS = {r'heatmap_head\.1': Target(-4.0, 1.2), r'task_heads\..*\.heatmap\.\d+': Target(-5.0, 1.2)}
"""Pattern of heat map layers -> target: a few hundred cells score over 0.1."""
FUSION_TARGETS = {
    r'prediction_heads\.0\.heatmap\.1': Target(0.0, 1.0),
    r'prediction_heads\.0\.center\.1': Target(0.0, 1.0),
    **{rf'prediction_heads\.0{pattern}': target for pattern, target in BOX_TARGETS.items()},
    **{rf'task_heads{pattern}': target for pattern, target in BOX_TARGETS.items()},
}
"""Pattern of the other last layers -> target, later: queries are peaks of the heat map."""


def fill_lidar(model: nn.Module, cfg: Any, family: SequenceFamily, seed: int = 0) -> nn.Module:
    """Fill a LiDAR detector of mmdet3d in place, and return it in evaluation mode.

    `cfg` says how points become voxels; `family` makes the calibration sweeps. Learned factors and offsets of
    norms outside of the sparse encoder stay, see `fill_network`.
    """
    from mmdeploy_ext.families.common.lidar_parts import encode, parts_of

    parts = parts_of(model.eval())
    with torch.no_grad(), single_thread():
        fill_network(model, seed, RESIDUAL)
        encoder = parts.middle_encoder
        if any(True for _ in encoder.parameters()):
            fill_sparse_module(encoder, f'{parts.prefix}middle_encoder.')
        sweeps = list(family.data.generated_sweeps(family.preprocess_rule(cfg), SWEEPS))

        def run() -> list[torch.Tensor]:
            maps = []
            for sweep in sweeps:
                *voxels, coordinates = model.voxelize([torch.from_numpy(sweep.points)])
                features = parts.voxel_encoder(*voxels, coordinates)
                if isinstance(features, tuple):
                    features, coordinates = features
                maps.append(encode(parts.middle_encoder, features, coordinates))
            return maps

        scale_last_layers(parts, torch.cat(calibrate_norms(norms_of(parts.voxel_encoder), run)))
    return model


def fill_point_fusion(model: nn.Module, cfg: Any, family: SequenceFamily, seed: int = 0) -> nn.Module:
    """Fill a detector such as MVX-Net in place as `fill_lidar`, on pairs of sweep and picture; return it."""
    from mmdeploy_ext.families.common.lidar_parts import parts_of

    parts = parts_of(model.eval())
    reference = family.reference(model)
    with torch.no_grad():
        fill_network(model, seed, RESIDUAL)
        fill_sparse_module(parts.middle_encoder, f'{parts.prefix}middle_encoder.')
        frames = list(family.data.generated_sweeps(family.preprocess_rule(cfg), SWEEPS))
        later_parts = (parts.middle_encoder, parts.backbone, parts.neck, parts.head)
        later = {module for part in later_parts if part is not None for module in part.modules()}
        norms = [norm for norm in norms_of(model) if norm not in later]

        def run() -> list[torch.Tensor]:
            return [torch.from_numpy(reference.step(frame).outputs['bev']) for frame in frames]

        scale_last_layers(parts, torch.cat(calibrate_norms(norms, run)))
    return model


def head_outputs(parts: Parts, maps: torch.Tensor) -> Any:
    features = parts.backbone(maps)
    return parts.head(features if parts.neck is None else parts.neck(features))


def scale_last_layers(parts: Parts, maps: torch.Tensor) -> None:
    """Rescale the last layers of the head in place, score layers first (`CLASS_LAYERS`).

    `maps` are the backbone's inputs of B sweeps or pictures, (B, C, H, W) or volumes.
    """
    convolutions = {name: layer for name, layer in parts.head.named_modules() if isinstance(layer, nn.Conv2d)}
    score_layers = {name: layer for name, layer in convolutions.items() if re.fullmatch(CLASS_LAYERS, name)}
    box_targets = _match_targets(parts.head, BOX_TARGETS, nn.Conv2d)
    dense_parts = [part for part in (parts.backbone, parts.neck, parts.head) if part is not None]
    norms = [norm for part in dense_parts for norm in norms_of(part)]
    outputs = outputs_of_all(
        [*score_layers.values(), *(convolutions[name] for name in box_targets)],
        lambda: calibrate_norms(norms, lambda: head_outputs(parts, maps)),
    )
    empty_outputs = outputs_of_all(
        list(score_layers.values()), lambda: head_outputs(parts, torch.zeros_like(maps[:1]))
    )
    count = max(2, BEST_ANCHORS // sum(len(layer.weight) for layer in score_layers.values()))
    best_scores: dict[str, list[torch.Tensor]] = {}
    for (name, layer), levels, empty in zip(score_layers.items(), outputs, empty_outputs, strict=False):
        logits = torch.cat([level.unflatten(1, (len(maps), -1)) for level in levels], 2)
        gain, shift = raise_scores(layer, logits, torch.cat(empty, 1), count)
        branch = re.match(BRANCH, name).group(1)
        best_scores[branch] = [(gain * level + shift).amax(0) for level in levels]
    for (name, target), levels in zip(box_targets.items(), outputs[len(score_layers) :], strict=True):
        scores = best_scores[re.match(BRANCH, name).group(1)]
        at_best_cells = [
            level[:, score.topk(min(BOX_CELLS, len(score))).indices]
            for level, score in zip(levels, scores, strict=True)
        ]
        rescale(convolutions[name], torch.cat(at_best_cells, 1), *target)


def raise_scores(
    layer: nn.Module, outputs: torch.Tensor, empty: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rescale scores to `EMPTY_LOGIT` in an empty map; return factor and summand (C, 1)."""
    count = min(count, max(1, outputs.shape[2] // CELLS_PER_BEST))
    margins = [
        (sign * outputs).topk(count, dim=2).values - (sign * empty).amax(1)[:, None, None] for sign in (1, -1)
    ]
    sign = torch.where(margins[0][..., -1].amin(1) >= margins[1][..., -1].amin(1), 1.0, -1.0)
    best = torch.where(sign[:, None, None] > 0, *margins).clamp(min=1e-3 * float(outputs.std()))
    # limits differ, so that the best of all channels do not tie
    limits = torch.linspace(*MAX_LOGITS, len(best))
    gain = torch.minimum(
        (BEST_LOGIT - EMPTY_LOGIT) / best[..., -1].amin(1), (limits - EMPTY_LOGIT) / best.amax((1, 2))
    )
    shift = EMPTY_LOGIT - gain * (sign[:, None] * empty).amax(1)
    layer.weight.mul_((gain * sign).view(-1, 1, 1, 1))
    layer.bias.copy_(gain * sign * layer.bias + shift)
    return (gain * sign)[:, None], shift[:, None]


def _match_targets(
    head: nn.Module, targets: dict[str, Target], types: type[nn.Module] | tuple[type[nn.Module], ...]
) -> dict[str, Target]:
    target_of = {}
    for name, layer in head.named_modules():
        matches = [target for pattern, target in targets.items() if re.fullmatch(pattern, name)]
        if matches and isinstance(layer, types):
            target_of[name] = matches[0]
    return target_of


def fill_fusion(model: nn.Module, cfg: Any, family: SequenceFamily, seed: int = 0) -> nn.Module:
    """Fill a BEVFusion (cameras, LiDAR or both) in place, and return it in evaluation mode.

    `family` makes the calibration frames. Learned factors and offsets of norms outside of the sparse encoder
    stay, see `fill_network`.
    """
    frames = list(family.data.generated_sweeps(family.preprocess_rule(cfg), FRAMES))
    reference = family.reference(model.eval())

    def run() -> None:
        for frame in frames:
            reference.step(frame)

    with torch.no_grad():
        fill_network(model, seed, RESIDUAL)
        norms = norms_of(model)
        if 'lidar' in model.sensors:
            encoder = model.encoders['lidar'].encoder
            fill_sparse_module(encoder, 'encoders.lidar.backbone.')
            sparse = set(encoder.modules())
            norms = [norm for norm in norms if norm not in sparse]
        calibrate_norms(norms, run)
        if 'camera' in model.sensors:
            transform = model.encoders['camera']['vtransform']
            last = [part for part in transform.depthnet.modules() if isinstance(part, nn.Conv2d)][-1]
            # the first D channels are logits of depth, the others features
            last.weight[: transform.D].mul_(DEPTH_DEVIATION / outputs_of(last, run)[: transform.D].std())
        head = model.heads['object']
        for targets in (HEAT_TARGETS, FUSION_TARGETS):
            target_of = _match_targets(head, targets, (nn.Conv1d, nn.Conv2d))
            layers = [head.get_submodule(name) for name in target_of]
            outputs = outputs_of_all(layers, run)
            for layer, target, calls in zip(layers, target_of.values(), outputs, strict=True):
                rescale(layer, torch.cat(calls, 1), *target)
    return model
