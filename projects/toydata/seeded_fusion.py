"""The seeded rule of BEVFusion: statistics of generated frames, a heat map of few peaks, unlike boxes."""

import re
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.families.sequence import SequenceFamily
from projects.toydata.seeded_layers import (
    Target,
    bring,
    calibrate_norms,
    fill_network,
    norms_of,
    outputs_of,
    outputs_of_all,
)
from projects.toydata.seeded_lidar import BOX_TARGETS, RESIDUAL
from projects.toydata.seeded_sparse import fill_module

FAMILIES = ('bevfusion_det',)
FRAMES = 2
"""Generated, whose statistics are taken."""
DEPTH_SPREAD = 2.0
"""Standard deviation of the logits of depth: a pixel's feature goes to a few of its bins."""
HEAT_TARGETS = {r'heatmap_head\.1': Target(-4.0, 1.2), r'task_heads\..*\.heatmap\.\d+': Target(-5.0, 1.2)}
"""Of a map: a few hundred of its cells are over a score of 0.1."""
TARGETS = {
    r'prediction_heads\.0\.heatmap\.1': Target(0.0, 1.0),
    r'prediction_heads\.0\.center\.1': Target(0.0, 1.0),
    **{rf'prediction_heads\.0{pattern}': target for pattern, target in BOX_TARGETS.items()},
    **{rf'task_heads{pattern}': target for pattern, target in BOX_TARGETS.items()},
}
"""Last layers of the head -> what their outputs are; what its queries are follows from the heat map."""


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
        for targets in (HEAT_TARGETS, TARGETS):
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
