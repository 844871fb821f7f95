"""Seeded weights of PETR and PETRv2 by names and shapes alone.

Source of the rule: FILL.md beside the reference data of PETR; `projects/driving/tests/petr/petr_golden.py`
reads it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded import by_name

CODE_WEIGHTS = 'pts_bbox_head.code_weights'
"""Key of the factors of box columns in the loss."""
BRANCHES = re.compile(r'(pts_bbox_head\.(?:cls|reg)_branches)\.\d+\.')
"""Beginning of the keys of a layer's branch."""
GAINS = {
    r'conv_offset\.weight': 1.2,
    r'^img_backbone\.layer[1-4]\..*conv3\.weight': 0.25,
    r'^img_backbone\.conv1\.weight': 0.0246,
    r'^img_backbone\.stage.*_concat/conv\.weight': 2.3,
    r'^img_backbone\..*ese\.fc\.weight': 1.0,
    r'^img_backbone\.': math.sqrt(2),
    r'^img_neck\.fpn_convs\.': 1.5,
    r'(position_encoder|adapt_pos3d)\.2\.weight': 2.0,
    r'cls_branches\.\d+\.6\.weight': 2.5,
    r'reg_branches\.\d+\.(4|task_heads\.\d+\.2)\.weight': 3.0,
    r'query_embedding\.2\.weight': 8.0,
    r'input_proj\.weight|fpe\.conv_expand\.weight': 2.0,
    r'': 1.0,
}
"""Pattern of a key -> gain of its kernel; the first match wins."""
QUERY_KEY_GAIN, SELF_VALUE_GAIN, CROSS_VALUE_GAIN = 0.8, 0.7, 3.0
"""Gains of the thirds of an attention's projection."""


def petr_weights(state_dict: Mapping[str, torch.Tensor], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return key -> seeded tensor, float32 (counters int64); `prefix` goes before each key in the seed."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    norms = by_name.norms_of(shapes)
    is_shared = not any('.task_heads.' in key for key in shapes)  # PETR's layers have one branch

    def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key == CODE_WEIGHTS:
            return np.ones(shape)
        rng = by_name.name_rng(prefix + (BRANCHES.sub(r'\1.0.', key) if is_shared else key))
        if key.endswith('reference_points.weight'):
            return rng.uniform(0.0, 1.0, shape)
        normal = rng.standard_normal(shape)
        if len(shape) > 1:
            return kernel_of(key, normal)
        values = by_name.vector_of(key, normal, norms)
        return values - 3.2 if re.search(r'cls_branches\.\d+\.6\.bias$', key) else values

    return by_name.state_dict_by_name(shapes, rule)


def kernel_of(key: str, normal: np.ndarray) -> np.ndarray:
    """Return a matrix or kernel of as many normal numbers."""
    axes = (2, 3) if key.startswith('img_neck.fpn_convs.') else None
    gain: float | np.ndarray = by_name.first_match(GAINS, key)
    if key.endswith('in_proj_weight'):
        of_values = SELF_VALUE_GAIN if '.attentions.0.' in key else CROSS_VALUE_GAIN
        gain = by_name.projection_gain(len(normal), QUERY_KEY_GAIN, of_values)
    return by_name.centred(normal, gain, axes)


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    model.load_state_dict(petr_weights(model.state_dict(), f'{seed}:' if seed else ''))
    return model
