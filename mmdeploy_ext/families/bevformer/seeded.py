"""Seeded weights of BEVFormer that depend on names and shapes alone.

The rows of kernels sum to zero, residual branches are small, and sampling offsets reach over cells, so that
every input moves the predictions and rounding does not grow. Source of the rule: FILL.md beside the
reference data of BEVFormer, which were made with these weights; `tests/bevformer_golden.py` reads them.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mmdeploy_ext.synthetic.seeded_by_name import centred, name_rng, state_dict_by_name

SCALED = (
    (r'level_embeds|cams_embeds', 0.2),
    (r'bev_embedding', 1.0),
    (r'query_embedding', 1.5),
    (r'(row|col)_embed', 0.5),
    (r'sampling_offsets\.bias', 2.0),
    (r'attention_weights\.bias', 0.5),
)
"""Pattern of a key -> factor of its normal numbers."""
GAINS = (
    (r'^img_backbone\.layer[1-4]\..*conv3\.weight', 0.25),
    (r'^img_backbone\.', math.sqrt(2)),
    (r'sampling_offsets', 0.5),
    (r'attention_weights', 1.0),
    (r'decoder\.layers\.\d+\.attentions\.0\.attn\.out_proj', 0.5),
    (r'decoder\.layers\.\d+\.attentions\.1\.value_proj', 1.0),
    (r'encoder\.layers\.\d+\.attentions\.0\.value_proj', 1.5),
    (r'encoder\.layers\.\d+\.attentions\.1\.deformable_attention\.value_proj', 3.0),
    (r'can_bus_mlp\.0', 0.3),
    (r'cls_branches\.\d+\.6', 1.5),
    (r'', 1.0),
)
"""Pattern of a key -> gain of its kernel, whose rows sum to zero."""
NORM = re.compile(r'norm|\.bn\d|downsample\.1|cls_branches\.\d+\.[14]\.|img_backbone\.bn')
LOGITS_BIAS = re.compile(r'pts_bbox_head\.cls_branches\.(\d+)\.6\.bias')
"""Biases of the logits, by the number of the decoder layer."""


def vector_of(key: str, numbers: np.ndarray) -> np.ndarray:
    """Return the values of a bias, or of a norm, from normal numbers."""
    if key.endswith('running_mean'):
        return 0.05 * numbers
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(numbers)
    if LOGITS_BIAS.fullmatch(key):
        return -2.5 + 0.02 * numbers
    if key.endswith('weight'):
        return 1 + 0.05 * numbers
    return (0.05 if NORM.search(key) else 0.02) * numbers


def kernel_of(key: str, numbers: np.ndarray) -> np.ndarray:
    """Return the values of a matrix or a kernel from normal numbers."""
    gain = next(factor for pattern, factor in GAINS if re.search(pattern, key))
    if key.endswith('in_proj_weight'):
        gain = np.where(np.arange(len(numbers)) < 512, 0.7, 1.5)[:, None]
    if re.search(r'reg_branches\.\d+\.4\.weight', key):
        gain = np.where(np.isin(np.arange(len(numbers)), (0, 1, 4)), 0.3, 1.0)[:, None]
    return centred(numbers, gain)


def values_of(key: str, shape: tuple[int, ...], prefix: str) -> np.ndarray:
    """Return the numbers of a key in float64; `prefix` precedes the key when they are drawn."""
    if key.endswith('code_weights'):
        return np.array([1.0] * 8 + [0.2] * 2)
    numbers = name_rng(prefix + key).standard_normal(shape)
    for pattern, factor in SCALED:
        if re.search(pattern, key):
            return factor * numbers
    return vector_of(key, numbers) if len(shape) == 1 else kernel_of(key, numbers)


def bevformer_weights(shapes: Mapping[str, Sequence[int]], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return the seeded tensors of keys, float32, counters int64.

    Args:
        shapes: key of a state dict -> shape.
        prefix: of all names when numbers are drawn: another one gives other weights.
    """
    return state_dict_by_name(shapes, lambda key, shape: values_of(key, shape, prefix))
