"""Seeded weights of VAD: BEVFormer's rule, with sure lines, trajectories and plans that move."""

import re
from typing import Any

import numpy as np
from torch import nn

from dev.seeded import bevformer, by_name

STEP_M = 1.5
"""Step of a plan along y, and scale of the others."""
BIASES = {
    r'\.cls_branches\.\d+\.6\.bias': -2.5,
    r'map_cls_branches\.\d+\.6\.bias': 0.0,
    r'traj_cls_branches\.\d+\.6\.bias': 0.0,
}
"""Pattern of a key -> mean of the biases."""

FACTORS = {
    r'reference_points\.weight': 2.0,
    r'map_reg_branches\.\d+\.4\.weight': 0.3,
    r'(ego_fut_decoder|traj_branches\.\d+)\.4\.weight': 0.2,
    r'': 1.0,
}
"""Pattern of a key -> factor of its numbers: lines and objects apart, steps ahead; the first match wins."""


def steps_of(numbers: np.ndarray) -> np.ndarray:
    """Return the biases x, y, x, ... of steps: ahead, each plan to another side."""
    steps = 0.3 * numbers.reshape(-1, 6, 2)
    sides = np.linspace(-1, 1, len(steps)) if len(steps) > 1 else np.zeros(1)
    return (steps + STEP_M * np.stack(np.broadcast_arrays(sides[:, None], 1.0), -1)).ravel()


def values_of(key: str, shape: tuple[int, ...], prefix: str, norms: Any) -> np.ndarray:
    if key.endswith('map_code_weights'):
        return np.ones(shape)
    numbers = by_name.name_rng(prefix + key).standard_normal(shape)
    if re.search(r'(ego_fut_decoder|traj_branches\.\d+)\.4\.bias', key):
        return steps_of(numbers)
    if any(re.search(pattern, key) for pattern in BIASES):
        return by_name.first_match(BIASES, key) + by_name.vector_of(key, numbers, norms)
    if key.endswith('map_pts_embedding.weight'):  # straight lines
        return np.linspace(-1, 1, len(numbers))[:, None] * numbers[0] + 0.05 * numbers
    if re.search(r'map_instance_embedding|motion_mode_query|ego_query', key):
        return 1.5 * numbers
    return by_name.first_match(FACTORS, key) * bevformer.values_of(key, shape, prefix, norms)


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    norms, prefix, head = by_name.norms_of(shapes), f'{seed}:' if seed else '', model.pts_bbox_head
    weights = by_name.state_dict_by_name(shapes, lambda key, shape: values_of(key, shape, prefix, norms))
    model.load_state_dict(bevformer.for_view(weights, max(head.bev_h, head.bev_w)))
    return model
