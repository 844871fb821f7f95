"""Seeded weights of BEVDet by names and shapes alone.

Source of the rule: FILL.md beside the reference data of BEVDet;
`projects/driving/tests/support/bevdet_golden.py` reads it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded import by_name

OF_CAMERA = 'img_view_transformer.depth_net.bn'
"""Normalisation of the camera vectors."""
CAMERA_MEAN = (
    1260, 1260, 810, 480, 0.44, 0, 0, 0, 0.44, -140, 1, 0, 0, 1, 1, *[0] * 11, 1.5,
)  # fmt: skip
CAMERA_STD = (
    80, 80, 15, 15, 0.05, 0.05, 5, 0.05, 0.05, 10, *[0.1] * 5, 0.6, 0.6, 0.6, 1, 0.6, 0.6, 0.6, 0.4, 0.6, 0.6,
    0.6, 0.2,
)  # fmt: skip
BASIC_BLOCKS, MORE_OBJECTS = 0.35, 2.5
"""For small models with basic blocks: gain of their second convolution, and a shift of the heatmap's bias."""
DEPTH_OF_BEVDET, FEATURES_OF_BEVDET = 1.6, 3.0
"""Gains of BEVDet's convolution to depth logits and features."""
GAINS = {
    r'^img_backbone\..*conv3\.weight': 0.25,
    r'downsample\.(0\.)?weight': 1.0,
    r'^(img_bev_encoder_backbone|pre_process_net|img_view_transformer)\..*\.conv2\.weight': 0.7,
    r'^img_neck\.fpn_convs\.': 4.0,
    r'depth_conv\.4\.weight': 8.0,
    r'context_conv\.weight': 6.0,
    r'': math.sqrt(2),
}
"""Pattern of a key -> gain of its kernel; the first match wins."""
OUT_BIAS = dict(reg=[0.5, 0.5], height=[-1.0], dim=[1.4, 0.6, 0.5], rot=[0.0] * 2, vel=[0.0] * 2)
OUT = {
    False: (dict(reg=1.0, height=3.0, dim=1.2, rot=6.0, vel=8.0, heatmap=5.2), -6.3),
    True: (dict(reg=0.8, height=2.0, dim=0.8, rot=6.0, vel=5.0, heatmap=3.2), -5.9),
}
"""Whether the model has a depth network -> gains of the head's outputs, bias of the heatmap."""
SMALLER_BOXES = 0.4
"""Factor of the kernel of log sizes in `fill`."""
LOGITS, FREE = 10.0, 3.0
"""Of the head of occupancy: factor of the kernel of logits, and what the bias of the last class gets more."""
OUTPUT = re.compile(r'task_heads\.\d+\.(\w+)\.1\.(weight|bias)$')


def bevdet_weights(shapes: Mapping[str, Sequence[int]], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return key -> seeded tensor, float32 (counters int64); `prefix` goes before each key in the seed."""
    norms = by_name.norms_of(shapes)
    gains, bias = OUT[f'{OF_CAMERA}.weight' in shapes]
    is_basic = not any(key.startswith('img_backbone.') and '.conv3.' in key for key in shapes)
    bias += MORE_OBJECTS if is_basic else 0.0
    depth_net = 'img_view_transformer.depth_net.weight'

    def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key == f'{OF_CAMERA}.running_mean':
            return np.array(CAMERA_MEAN, np.float64)
        if key == f'{OF_CAMERA}.running_var':
            return np.array(CAMERA_STD) ** 2
        normal, output = by_name.name_rng(prefix + key).standard_normal(shape), OUTPUT.search(key)
        if len(shape) == 1:
            values = by_name.vector_of(key, normal, norms)
            return values + np.array(OUT_BIAS.get(output[1], bias)) if output else values
        if output:
            return by_name.centred(normal, gains[output[1]])
        if key == depth_net:
            bins = shape[0] - shapes['img_bev_encoder_backbone.layers.0.0.conv1.weight'][1]
            rows = np.arange(shape[0])[:, None, None, None]
            return by_name.centred(normal, np.where(rows < bins, DEPTH_OF_BEVDET, FEATURES_OF_BEVDET))
        if is_basic and re.search(r'^img_backbone\..*conv2\.weight', key):
            return by_name.centred(normal, BASIC_BLOCKS)
        return by_name.centred(normal, by_name.first_match(GAINS, key))

    return by_name.state_dict_by_name(shapes, rule)


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    """Load the seeded weights, with smaller boxes than the reference data's 100 m, which amplify rounding."""
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    weights = bevdet_weights(shapes, f'{seed}:' if seed else '')
    for key, tensor in weights.items():
        if re.search(r'task_heads\.\d+\.dim\.1\.weight$', key):
            tensor *= SMALLER_BOXES
    model.load_state_dict(weights)
    return model


def fill_occupancy(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    """Load the seeded weights; about half of the voxels are free."""
    model, head = fill(model, cfg, family, seed), model.occ_head
    with torch.no_grad():
        head.predicter[-1].weight *= LOGITS
        head.predicter[-1].bias.view(head.Dz, head.num_classes)[:, -1] += FREE
    return model
