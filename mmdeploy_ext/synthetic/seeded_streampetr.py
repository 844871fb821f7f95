"""Seeded weights for full-size StreamPETR without a trained checkpoint: scores neither constant nor chaotic.

The rule depends on names and shapes alone, so that the model is the same everywhere: all numbers come from
numpy's PCG64, seeded by the CRC of a name, and are float64 until the end. Source: the rule of the project's
reference tensors; the gains keep queries apart and attention calm, so that float32 noise does not grow.
"""

import math
import re

import numpy as np
import torch

from mmdeploy_ext.synthetic.seeded_sparse import by_names, rng

# the first match wins; ranges and weights of the published config with 428 queries
KEPT = {
    'pts_bbox_head.code_weights': [2.0, 2.0] + [1.0] * 8,
    'pts_bbox_head.match_costs': [2.0, 2.0] + [1.0] * 8,
    'pts_bbox_head.pc_range': [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
    'pts_bbox_head.position_range': [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
}
VECTORS = {  # pattern: offset and scale of a standard normal
    r'running_mean$': (0.0, 0.05),
    r'^norm\.weight$': (1.0, 0.05),
    r'^norm\.bias$': (0.0, 0.05),
    r'pts_bbox_head\.ego_pose_pe\.gamma\.bias$': (2.5, 0.05),
    r'\.gamma\.bias$': (1.0, 0.02),
    r'cls_branches\.\d+\.6\.bias$': (-2.0, 0.02),
    r'bias$': (0.0, 0.02),
}
GAINS = {
    r'img_backbone\.layer[1-4]\..*\.conv3\.weight$': 0.25,
    r'^img_backbone\.': math.sqrt(2),
    r'pts_bbox_head\.position_encoder\.2\.weight$': 8.0,
    r'cls_branches\.\d+\.6\.weight$': 1.5,
    r'\.(gamma|beta)\.weight$': 0.3,
    r'': 1.0,
}


def seeded_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return the seeded value of every key of a state dict: key -> shape."""
    norms = {key.removesuffix('.weight') for key, shape in shapes.items() if len(shape) == 1}
    return by_names(shapes, lambda key, shape: _values(key, shape, norms))


def _values(key: str, shape: tuple[int, ...], norms: set[str]) -> np.ndarray:
    if key in KEPT:
        return np.array(KEPT[key])
    if key == 'pts_bbox_head.coords_d':
        index = torch.arange(shape[0]).float()
        return (1 + torch.tensor(61.2 - 1) / (shape[0] * (1 + shape[0])) * index * (index + 1)).numpy()
    # the six branches are one module
    source = rng(re.sub(r'(pts_bbox_head\.(cls|reg)_branches)\.\d+\.', r'\1.0.', key))
    if key.endswith('reference_points.weight'):
        return source.uniform(0.0, 1.0, shape)
    normal = source.standard_normal(shape)
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if len(shape) < 2:
        module, leaf = key.rsplit('.', 1)
        of_norm = module in norms and leaf in ('weight', 'bias')
        offset, scale = _first(VECTORS, f'norm.{leaf}' if of_norm else key)
        return offset + scale * normal
    centred = normal - normal.mean(axis=tuple(range(1, normal.ndim)), keepdims=True)
    if key.endswith('in_proj_weight'):
        # queries and keys stay small, values do not
        gain = np.where(np.arange(len(normal)) < len(normal) * 2 // 3, 0.6, 2.0)[:, None]
    else:
        gain = _first(GAINS, key)
    return centred * gain / math.sqrt(math.prod(normal.shape[1:]))


def _first(rules: dict, key: str) -> object:
    return next(value for pattern, value in rules.items() if re.search(pattern, key))
