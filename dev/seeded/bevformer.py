"""Seeded weights of BEVFormer by names and shapes alone.

Source of the rule: FILL.md beside the reference data of BEVFormer;
`projects/driving/tests/bevformer/bevformer_golden.py` reads it.
"""

import math
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded import by_name

SCALED = (
    (r'level_embeds|cams_embeds', 0.2),
    (r'bev_embedding', 1.0),
    (r'query_embedding', 1.5),
    (r'(row|col)_embed', 0.5),
    (r'sampling_offsets\.bias', 2.0),
    (r'attention_weights\.bias', 0.5),
)
"""Pattern of a key -> factor of its standard normal numbers, the key's only rule."""
GAINS = {
    r'conv_offset\.weight': 1.2,
    r'^img_backbone\.layer[1-4]\..*conv3\.weight': 0.25,
    r'^img_backbone\.': math.sqrt(2),
    r'sampling_offsets': 0.5,
    r'attention_weights': 1.0,
    r'decoder\.layers\.\d+\.attentions\.0\.attn\.out_proj': 0.5,
    r'decoder\.layers\.\d+\.attentions\.1\.value_proj': 1.0,
    r'encoder\.layers\.\d+\.attentions\.0\.value_proj': 1.5,
    r'encoder\.layers\.\d+\.attentions\.1\.deformable_attention\.value_proj': 3.0,
    r'can_bus_mlp\.0': 0.3,
    r'cls_branches\.\d+\.6': 1.5,
    r'': 1.0,
}
"""Pattern of a key -> gain of its kernel; the first match wins."""
UNDIVIDED_STEM = math.sqrt(2) / 57
"""Gain of the first kernel of backbones with deformable convolutions."""
DECODER_VALUES = re.compile(r'decoder\.layers\.\d+\.attentions\.1\.value_proj\.weight')
"""Kernels by which the decoder reads the bird's-eye view."""
LARGEST_UNSCALED_VIEW = 50
"""Cells along the longer side of the view above which `for_view` scales the decoder."""
LOGITS_BIAS = re.compile(r'pts_bbox_head\.cls_branches\.\d+\.6\.bias')
"""Biases of the logits of all decoder layers."""


def kernel_of(key: str, numbers: np.ndarray) -> np.ndarray:
    """Return a kernel (out, in, ...) float64 of as many normal numbers, see `GAINS` and `centred`."""
    gain = by_name.first_match(GAINS, key)
    if key.endswith('in_proj_weight'):
        gain = np.where(np.arange(len(numbers)) < 512, 0.7, 1.5)[:, None]
    if re.search(r'reg_branches\.\d+\.4\.weight', key):
        gain = np.where(np.isin(np.arange(len(numbers)), (0, 1, 4)), 0.3, 1.0)[:, None]
    return by_name.centred(numbers, gain)


def values_of(key: str, shape: tuple[int, ...], prefix: str, norms: Container[str]) -> np.ndarray:
    """Return the float64 values of a key other than a counter; `norms` are `norms_of`."""
    if key.endswith('code_weights'):
        return np.array([1.0] * 8 + [0.2] * 2)
    numbers = by_name.name_rng(prefix + key).standard_normal(shape)
    for pattern, factor in SCALED:
        if re.search(pattern, key):
            return factor * numbers
    if len(shape) > 1:
        return kernel_of(key, numbers)
    values = by_name.vector_of(key, numbers, norms)
    return values - 2.5 if LOGITS_BIAS.fullmatch(key) else values


def bevformer_weights(shapes: Mapping[str, Sequence[int]], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return key -> seeded tensor, float32 (counters int64).

    `prefix` goes before each key in the seed; the reference data has '' and 'heldout:'.
    """
    norms = by_name.norms_of(shapes)
    weights = by_name.state_dict_by_name(shapes, lambda key, shape: values_of(key, shape, prefix, norms))
    stem = 'img_backbone.conv1.weight'
    if stem in weights and any('conv_offset' in key for key in weights):
        weights[stem] *= UNDIVIDED_STEM / math.sqrt(2)
    return weights


def for_view(weights: Mapping[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """Scale weights: the finer the view (`side` cells), the more weakly the decoder reads it.

    At 150 cells PyTorch's logits in float32 and float64 were 5.4e-4 apart; with this factor 3.8e-5.
    """
    factor = min(1.0, LARGEST_UNSCALED_VIEW / side)
    return {key: tensor * factor if DECODER_VALUES.search(key) else tensor for key, tensor in weights.items()}


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    weights = bevformer_weights(shapes, f'{seed}:' if seed else '')
    head = model.pts_bbox_head
    model.load_state_dict(for_view(weights, max(head.bev_h, head.bev_w)))
    return model
