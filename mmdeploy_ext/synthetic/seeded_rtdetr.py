"""Seeded weights for RT-DETR, the same wherever they are made: what the goldens were made with.

Source of the rule: FILL.md of the goldens (shared/golden/rtdetr); names are the original repository's.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mmdeploy_ext.synthetic.seeded_sparse import by_names, rng

ROOT2 = math.sqrt(2)
BIASES = ((r'^decoder\.enc_score_head\.bias$', 1.0), (r'^decoder\.dec_score_head\.\d+\.bias$', 0.669))
# key -> gain; the first match wins
GAINS = (
    (r'^backbone\.res_layers\..*\.branch2c\.conv\.weight$', 0.5),
    (r'^backbone\.', ROOT2),
    (r'\.cross_attn\.(sampling_offsets|attention_weights)\.weight$', 1.0),
    (r'\.cross_attn\.value_proj\.weight$', 1.2),
    (r'^decoder\.query_pos_head\.layers\.0\.weight$', 2.0),
    (r'^decoder\.(enc_bbox_head|dec_bbox_head\.\d+)\.layers\.2\.weight$', 0.5),
    (r'^decoder\.(enc_bbox_head|dec_bbox_head\.\d+)\.layers\.[01]\.weight$', ROOT2),
    (r'^decoder\.(enc_score_head|dec_score_head\.\d+)\.weight$', 1.5),
    (r'^encoder\..*\.bottlenecks\.\d+\.conv[12]\.conv\.weight$', 1.3),
    (r'^encoder\.(fpn_blocks|pan_blocks|lateral_convs|downsample_convs)\.', 1.6),
)


def seeded_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the seeded value of every key -> shape of a state dict with the original repository's names."""
    deep = any('.branch2c.' in key for key in shapes)
    return by_names(shapes, lambda name, shape: _values(name, rng(name).standard_normal(shape), deep))


def _values(name: str, normal: np.ndarray, deep: bool) -> np.ndarray:
    if name.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if name.endswith('running_mean'):
        return 0.05 * normal
    if normal.ndim == 1 and name.endswith('.weight'):
        return 1 + 0.05 * normal
    if name == 'decoder.denoising_class_embed.weight':
        padding = np.arange(len(normal)) == len(normal) - 1
        return np.where(padding[:, None], 0.0, 0.1 * normal)
    for pattern, spread in BIASES:
        if re.match(pattern, name):
            return -3 + spread * normal
    if name.endswith('bias'):
        return 0.02 * normal
    axes = tuple(range(1, normal.ndim))
    centred = normal - normal.mean(axis=axes, keepdims=True)
    return centred * _gain(name, normal.shape, deep) / math.sqrt(math.prod(normal.shape[1:]))


def _gain(name: str, shape: tuple[int, ...], deep: bool) -> float | np.ndarray:
    if name.endswith('.self_attn.in_proj_weight'):
        return np.where(np.arange(shape[0]) < shape[0] * 2 // 3, 0.6, 1.0)[:, None]
    if not deep and re.match(r'^backbone\.res_layers\..*\.branch2b\.conv\.weight$', name):
        return 0.5
    return next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1.0)
