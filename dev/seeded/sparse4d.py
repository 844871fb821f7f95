"""Seeded weights of Sparse4D by names and shapes alone.

Source of the rule: FILL.md beside the reference data of Sparse4D;
`projects/driving/tests/sparse4d/sparse4d_golden.py` reads it.
"""

import math
import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded import by_name

INPUT_BIASES = dict(pos_fc=15.0, size_fc=1.0, yaw_fc=0.5, vel_fc=2.0)
"""Network of the anchors' embedding -> deviation of its first biases."""
STEPS = (0.4, 0.4, 0.16, 0.05, 0.05, 0.05, 0.1, 0.1, 0.08, 0.08, 0.01)
"""Scale of the step of each number of an anchor, m, m/s, or without unit."""
GAINS = {
    r'^img_backbone\.layer[1-4]\..*conv3\.weight': 0.25,
    r'^img_backbone\.': math.sqrt(2),
    r'\.weights_fc\.weight': 0.6,
    r'\.output_proj\.weight': 6.0,
    r'\.cls_layers\.6\.weight': 2.0,
    r'\.layers\.10\.weight': 0.5,
    r'': 1.0,
}
"""Pattern of a key -> gain of its centred kernel; the first match wins."""
GATHERED = '.output_proj.weight'
"""Ends of keys of layers behind the gathered features."""
GOLDEN_WIDTH = 704
"""Width, px, of the reference data; `for_width` scales for wider pictures."""
RADIUS_M, HEIGHT_M, SIZE_M = 52.0, (-0.6, 0.8), (4.0, 1.8, 1.7)
"""Radius of the anchors' disc, mean and deviation of heights, mean sizes."""


def anchors_of(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return anchors (count, 11) around the car."""
    radius, angle, turn = generator.uniform(0, 1, (count, 3)).T
    numbers = generator.standard_normal((count, 7))
    radius, angle, turn = RADIUS_M * np.sqrt(radius), 2 * np.pi * angle, 2 * np.pi * turn
    places = radius * np.cos(angle), radius * np.sin(angle), HEIGHT_M[0] + HEIGHT_M[1] * numbers[:, 0]
    sizes = np.log(SIZE_M) + 0.35 * numbers[:, 1:4]
    velocity = numbers[:, 4:] * np.array([2, 2, 0.1])
    return np.column_stack([*places, sizes, np.sin(turn), np.cos(turn), velocity])


def bias_of(key: str, numbers: np.ndarray, norms: Container[str]) -> np.ndarray:
    """Return the vector at `key`, from as many normal `numbers`."""
    network = re.search(r'anchor_encoder\.(\w+)\.0\.bias', key)
    if network:
        return INPUT_BIASES[network[1]] * numbers
    if key.endswith('.scale'):
        return np.array(STEPS) * (1 + 0.05 * numbers)
    if key.endswith('.cls_layers.6.bias'):
        return -3.6 + 0.1 * numbers
    if key.endswith('.quality_layers.6.bias'):
        return np.array([0.8, 0.0]) + 0.1 * numbers
    return by_name.vector_of(key, numbers, norms)


def kernel_of(key: str, numbers: np.ndarray) -> np.ndarray:
    """Return the matrix or kernel at `key`, from as many normal `numbers`."""
    if re.search(r'anchor_encoder\.\w+\.0\.weight|camera_encoder\.0\.weight', key):
        return numbers
    gain = by_name.first_match(GAINS, key)
    if key.endswith('in_proj_weight'):
        gain = by_name.projection_gain(len(numbers), 0.6, 2.0)
    return by_name.centred(numbers, gain)


def sparse4d_weights(state: Mapping[str, torch.Tensor], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return key -> seeded tensor, float32 (counters int64).

    `state` is of the new model; its fixed key points stay. `prefix` goes before each key in the seed.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    norms = by_name.norms_of(shapes)

    def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key.endswith('fix_scale'):
            return state[key].numpy().astype(np.float64)
        generator = by_name.name_rng(prefix + key)
        if key.endswith('instance_bank.anchor'):
            return anchors_of(generator, shape[0])
        numbers = generator.standard_normal(shape)
        if key.endswith('instance_feature'):
            return 0.3 * numbers
        return bias_of(key, numbers, norms) if len(shape) == 1 else kernel_of(key, numbers)

    return by_name.state_dict_by_name(shapes, rule)


def for_width(weights: Mapping[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Scale weights: the wider the pictures (px), the more weakly instances read the maps.

    PyTorch's logits in float32 and float64 were 1.5e-4 apart, the graph's 5.8e-4; with this factor at most
    8.3e-5 in twelve frames.
    """
    factor = min(1.0, GOLDEN_WIDTH / width)
    return {key: tensor * factor if key.endswith(GATHERED) else tensor for key, tensor in weights.items()}


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    weights = sparse4d_weights(model.state_dict(), f'{seed}:' if seed else '')
    model.load_state_dict(for_width(weights, model.input_sizes[-1]))
    return model
