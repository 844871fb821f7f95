"""The seeded rule of LiDAR detectors: cells without points score low, those with points differ; BEVFusion's.

Statistics come from generated sweeps, most of whose bird's-eye view is empty. What an empty map gives is the
same for thousands of anchors: if it passed the threshold, as it does with half of all seeds, the best hundred
of them would be any hundred. So the last layers of the scores are brought to two figures: an empty map's
highest logit, and the logit that a few hundred of a sweep's anchors are over. BEVFusion has statistics of
generated frames, a heat map of few peaks, and unlike boxes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmdeploy_ext.compat import single_thread
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.synthetic.seeded_dense import DELTA_TARGET
from mmdeploy_ext.synthetic.seeded_layers import (
    Target,
    bring,
    calibrate_norms,
    fill_network,
    norms_of,
    outputs_of,
    outputs_of_all,
)
from mmdeploy_ext.synthetic.seeded_sparse import fill_module

if TYPE_CHECKING:
    from mmdeploy_ext.families.parts.parts import Parts

SWEEPS = 3
"""Of the generated world, whose statistics are taken."""
RESIDUAL = 0.1
"""Scale of the last normalisation of every residual block; see `seeded_dense.Calibration`."""
EMPTY, BEST = -5.0, 0.0
"""Logits: the highest of an empty map, and what `OVER` anchors of each sweep are over, of all channels."""
HIGHEST = 3.0, 4.0
"""And the highest logits of those sweeps, by channel: others may have twice as much, and still be apart."""
OVER = 200
LEAST_CELLS = 50
"""Of as many cells at most one counts as one of the best: toys have few."""
PLACES = 500
"""Cells of the best scores, whose boxes are brought to their targets."""
CLASS_LAYERS = r'(.*\.)?(conv_cls|(heatmap|cls_head)\.\d+)'
BOX_TARGETS = {
    r'(.*\.)?conv_reg': DELTA_TARGET,
    r'(.*\.)?conv_dir_cls': Target(0.0, 1.0),
    r'.*\.reg\.\d+': Target(0.5, 0.3),
    r'.*\.height\.\d+': Target(-1.0, 0.5),
    r'.*\.dim\.\d+': Target(0.6, 0.4),
    r'.*\.rot\.\d+': Target(0.0, 1.0),
    r'.*\.vel\.\d+': Target(0.0, 1.0),
}
"""Last layers of boxes -> what their outputs are at the best cells."""
BRANCH = r'((?:task_heads|heads)\.\d+|)'
"""What the name of a layer begins with that has the cells of others."""
FRAMES = 2
"""Generated, whose statistics are taken."""
DEPTH_SPREAD = 2.0
"""Standard deviation of the logits of depth: a pixel's feature goes to a few of its bins."""
HEAT_TARGETS = {r'heatmap_head\.1': Target(-4.0, 1.2), r'task_heads\..*\.heatmap\.\d+': Target(-5.0, 1.2)}
"""Of a map: a few hundred of its cells are over a score of 0.1."""
FUSION_TARGETS = {
    r'prediction_heads\.0\.heatmap\.1': Target(0.0, 1.0),
    r'prediction_heads\.0\.center\.1': Target(0.0, 1.0),
    **{rf'prediction_heads\.0{pattern}': target for pattern, target in BOX_TARGETS.items()},
    **{rf'task_heads{pattern}': target for pattern, target in BOX_TARGETS.items()},
}
"""Last layers of the head -> what their outputs are; what its queries are follows from the heat map."""


def fill_lidar(model: nn.Module, cfg: Any, family: SequenceFamily, seed: int = 0) -> nn.Module:
    """Fill a LiDAR detector of mmdet3d by the rule of this module, in place.

    Its sparse encoder has the weights that follow from their names (`seeded_sparse.py`).
    """
    from mmdeploy_ext.families.parts.parts import parts_of

    parts = parts_of(model.eval())
    with torch.no_grad(), single_thread():
        fill_network(model, seed, RESIDUAL)
        encoder = parts.middle_encoder
        if any(True for _ in encoder.parameters()):
            fill_module(encoder, f'{parts.prefix}middle_encoder.')
        sweeps = list(family.generated_sweeps(family.preprocess_rule(cfg), SWEEPS))

        def run() -> list[torch.Tensor]:
            return [bird_eye(model, parts, torch.from_numpy(sweep.points)) for sweep in sweeps]

        scale_last_layers(parts, torch.cat(calibrate_norms(norms_of(parts.voxel_encoder), run)))
    return model


def bird_eye(model: nn.Module, parts: Parts, points: torch.Tensor) -> torch.Tensor:
    """Return the map (1, C, H, W) of a sweep (P, D)."""
    *voxels, coordinates = model.voxelize([points])
    found = parts.voxel_encoder(*voxels, coordinates)
    features, coordinates = found if isinstance(found, tuple) else (found, coordinates)
    return parts.middle_encoder(features, coordinates, 1)


def dense(parts: Parts, maps: torch.Tensor) -> Any:
    """Return what the head gives for maps (B, C, H, W)."""
    found = parts.backbone(maps)
    return parts.head(found if parts.neck is None else parts.neck(found))


def scale_last_layers(parts: Parts, maps: torch.Tensor) -> None:
    """Bring the outputs of the head's last layers to their targets, the scores first.

    The statistics before them are taken in the same run: a normalisation has them before it is applied. The
    maps are those of sweeps, (B, C, H, W).
    """
    named = {name: layer for name, layer in parts.head.named_modules() if isinstance(layer, nn.Conv2d)}
    scores = {name: layer for name, layer in named.items() if re.fullmatch(CLASS_LAYERS, name)}
    boxes = {name: layer for name, layer in named.items() if target_of(name)}
    layers = [*scores.values(), *boxes.values()]
    behind = [part for part in (parts.backbone, parts.neck, parts.head) if part is not None]
    norms = [norm for part in behind for norm in norms_of(part)]
    found = outputs_of_all(layers, lambda: calibrate_norms(norms, lambda: dense(parts, maps)))
    empty = outputs_of_all(list(scores.values()), lambda: dense(parts, torch.zeros_like(maps[:1])))
    count = max(2, OVER // sum(len(layer.weight) for layer in scores.values()))
    best: dict[str, list[torch.Tensor]] = {}
    for (name, layer), levels, nothing in zip(scores.items(), found, empty, strict=False):
        outputs = torch.cat([level.unflatten(1, (len(maps), -1)) for level in levels], 2)
        gain, shift = raise_scores(layer, outputs, torch.cat(nothing, 1), count)
        best[branch(name)] = [(gain * level + shift).amax(0) for level in levels]
    for (name, layer), levels in zip(boxes.items(), found[len(scores) :], strict=True):
        pairs = zip(levels, best[branch(name)], strict=True)
        kept = [level[:, score.topk(min(PLACES, len(score))).indices] for level, score in pairs]
        bring(layer, torch.cat(kept, 1), *target_of(name))


def raise_scores(
    layer: nn.Module, outputs: torch.Tensor, empty: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring logits of an empty map to `EMPTY`, and the `count` best of each sweep over `BEST`, by channel.

    The layer, which has a bias, gives outputs (C, B, n) of B sweeps and (C, m) of an empty map. Returned is
    what the outputs were multiplied by, and what was added to them: (C, 1) each.
    """
    count = min(count, max(1, outputs.shape[2] // LEAST_CELLS))
    above = [
        (sign * outputs).topk(count, dim=2).values - (sign * empty).amax(1)[:, None, None] for sign in (1, -1)
    ]
    sign = torch.where(above[0][..., -1].amin(1) >= above[1][..., -1].amin(1), 1.0, -1.0)
    best = torch.where(sign[:, None, None] > 0, *above).clamp(min=1e-3 * float(outputs.std()))
    limits = torch.linspace(*HIGHEST, len(best))  # apart, or the best of all channels would tie
    gain = torch.minimum((BEST - EMPTY) / best[..., -1].amin(1), (limits - EMPTY) / best.amax((1, 2)))
    shift = EMPTY - gain * (sign[:, None] * empty).amax(1)
    layer.weight.mul_((gain * sign).view(-1, 1, 1, 1))
    layer.bias.copy_(gain * sign * layer.bias + shift)
    return (gain * sign)[:, None], shift[:, None]


def target_of(name: str) -> Target | None:
    """Return what the outputs of a layer of boxes are brought to; None of another layer."""
    return next((target for pattern, target in BOX_TARGETS.items() if re.fullmatch(pattern, name)), None)


def branch(name: str) -> str:
    """Return which branch of the head a layer belongs to; '' where there is one."""
    return re.match(BRANCH, name).group(1)


def fill_fusion(model: nn.Module, cfg: Any, family: SequenceFamily, seed: int = 0) -> nn.Module:
    """Fill a BEVFusion by the rule of this module, in place.

    Its sparse encoder has the weights that follow from their names (`seeded_sparse.py`).
    """
    frames = list(family.generated_sweeps(family.preprocess_rule(cfg), FRAMES))
    reference = family.reference(model.eval())

    def run() -> None:
        for frame in frames:
            reference.step(frame)

    with torch.no_grad():
        fill_network(model, seed, RESIDUAL)
        norms = norms_of(model)
        if 'lidar' in model.sensors:
            encoder = model.encoders['lidar'].encoder
            fill_module(encoder, 'encoders.lidar.backbone.')
            sparse = set(encoder.modules())
            norms = [norm for norm in norms if norm not in sparse]
        calibrate_norms(norms, run)
        if 'camera' in model.sensors:
            _spread_depth(model.encoders['camera']['vtransform'], run)
        for targets in (HEAT_TARGETS, FUSION_TARGETS):
            _bring_all(model.heads['object'], targets, run)
    return model


def _spread_depth(transform: nn.Module, run: Any) -> None:
    """Bring the logits of depth to their spread; the features stay."""
    last = [part for part in transform.depthnet.modules() if isinstance(part, nn.Conv2d)][-1]
    last.weight[: transform.D].mul_(DEPTH_SPREAD / outputs_of(last, run)[: transform.D].std())


def _bring_all(head: nn.Module, targets: dict[str, Target], run: Any) -> None:
    """Bring the outputs of the layers of a head to their targets, in one run."""
    wanted = {}
    for name, layer in head.named_modules():
        found = [target for pattern, target in targets.items() if re.fullmatch(pattern, name)]
        if found and isinstance(layer, nn.Conv1d | nn.Conv2d):
            wanted[layer] = found[0]
    for (layer, target), levels in zip(wanted.items(), outputs_of_all(list(wanted), run), strict=True):
        bring(layer, torch.cat(levels, 1), *target)
