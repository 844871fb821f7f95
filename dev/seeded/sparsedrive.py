"""Seeded weights of SparseDrive: Sparse4D's rule, with lines, trajectories and a plan that moves."""

import math
import re
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded import by_name, sparse4d

LINE_M, STEP_M = 12.0, 0.15
"""Half a length of lines, and scale of the steps of their points."""
BIASES = {
    r'det_head.*cls_layers\.6\.bias': -2.5,
    r'map_head.*cls_layers\.6\.bias': -1.0,
    r'(motion|plan)_cls_branch\.6\.bias': -1.0,
}
"""Pattern of a key -> mean of the biases."""
AHEAD_M = 1.5
"""Step of a plan along y."""


def lines_of(generator: np.random.Generator, count: int, numbers: int) -> np.ndarray:
    """Return lines (count, numbers) x y around the car."""
    anchors = sparse4d.anchors_of(generator, count)
    along = np.linspace(-LINE_M, LINE_M, numbers // 2)[:, None]
    return (0.4 * anchors[:, None, :2] + along * anchors[:, None, 7:5:-1]).reshape(count, numbers)


def ways_of(shape: tuple[int, ...], turn: float) -> np.ndarray:
    """Return ways (classes, modes, steps, 2) in m, each of another direction."""
    angles = turn + np.linspace(-1.2, 1.2, math.prod(shape[:2])).reshape(*shape[:2], 1)
    ways = AHEAD_M * np.arange(1, shape[2] + 1) * np.exp(1j * angles)
    return np.stack([ways.real, ways.imag], -1)


def bias_of(key: str, numbers: np.ndarray, norms: Any) -> np.ndarray:
    if key.endswith('.scale') and len(numbers) != len(sparse4d.STEPS):
        return STEP_M * (1 + 0.05 * numbers)
    if key.endswith('_reg_branch.4.bias'):
        return 0.3 * numbers + AHEAD_M * (np.arange(len(numbers)) % 2)
    if any(re.search(pattern, key) for pattern in BIASES):
        return by_name.first_match(BIASES, key) + 0.1 * numbers
    return sparse4d.bias_of(key, numbers, norms)


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    state, prefix = model.state_dict(), f'{seed}:' if seed else ''
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    norms = by_name.norms_of(shapes)

    def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key.endswith(('fix_scale', 'ego_anchor')):
            return state[key].numpy().astype(np.float64)
        if key.endswith(('motion_anchor', 'plan_anchor')):
            return ways_of(shape, math.pi / 2 if 'plan' in key else 0.0)
        generator = by_name.name_rng(prefix + key)
        if key.endswith('instance_bank.anchor'):
            return (
                lines_of(generator, *shape) if 'map_head' in key else sparse4d.anchors_of(generator, shape[0])
            )
        numbers = generator.standard_normal(shape)
        if key.endswith('instance_feature'):
            return 0.3 * numbers
        return bias_of(key, numbers, norms) if len(shape) == 1 else sparse4d.kernel_of(key, numbers)

    weights: dict[str, torch.Tensor] = by_name.state_dict_by_name(shapes, rule)
    model.load_state_dict(sparse4d.for_width(weights, model.input_sizes[-1]))
    return model
