"""The goldens' seeded weights and inputs of BEVFormer, made again by the rule of FILL.md.

Source: ../shared/golden/bevformer/FILL.md. `prefix` is 'heldout:' for the set that is kept apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mmdeploy_ext.synthetic.seeded_by_name import name_rng

if TYPE_CHECKING:
    from collections.abc import Mapping

GOLDEN = Path(__file__).resolve().parents[2] / 'shared/golden/bevformer'
LAST_LOGITS = {
    '': (0.1, 0.0, -1.0, 0.2, 1.2, 0.8, 0.6, 0.4, 0.6, -0.1),
    'heldout:': (0.8, -0.1, 1.2, -0.1, 0.3, 0.5, 0.8, 0.6, 0.1, -0.3),
}
"""Prefix of the names -> what is added to the logits' biases of the last layer."""
SCALED = (  # pattern of a key -> factor of its numbers
    (r'level_embeds|cams_embeds', 0.2),
    (r'bev_embedding', 1.0),
    (r'query_embedding', 1.5),
    (r'(row|col)_embed', 0.5),
    (r'sampling_offsets\.bias', 2.0),
    (r'attention_weights\.bias', 0.5),
)
GAINS = (  # pattern of a key -> gain of its zero-sum rows
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
NORM = re.compile(r'norm|\.bn\d|downsample\.1|cls_branches\.\d+\.[14]\.|img_backbone\.bn')
LAST_BIAS = re.compile(r'pts_bbox_head\.cls_branches\.(\d+)\.6\.bias')


def require_golden() -> Path:
    """Return the folder of the goldens; skip the test where it is not."""
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/bevformer not found')
    return GOLDEN


def vector_of(key: str, numbers: np.ndarray, prefix: str) -> np.ndarray:
    """Return the values of a bias, or of a norm, from normal numbers."""
    if key.endswith('running_mean'):
        return 0.05 * numbers
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(numbers)
    if match := LAST_BIAS.fullmatch(key):
        last = np.array(LAST_LOGITS[prefix]) if match[1] == '5' else 0.0
        return -2.5 + 0.02 * numbers + last
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
    centred = numbers - numbers.mean(axis=tuple(range(1, numbers.ndim)), keepdims=True)
    return centred * gain / math.sqrt(math.prod(numbers.shape[1:]))


def values_of(key: str, shape: tuple[int, ...], prefix: str) -> np.ndarray:
    """Return the numbers of a key in float64."""
    if key.endswith('code_weights'):
        return np.array([1.0] * 8 + [0.2] * 2)
    numbers = name_rng(prefix + key).standard_normal(shape)
    for pattern, factor in SCALED:
        if re.search(pattern, key):
            return factor * numbers
    return vector_of(key, numbers, prefix) if len(shape) == 1 else kernel_of(key, numbers)


def state_dict(shapes: Mapping[str, tuple[int, ...]], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return the seeded tensors of keys and shapes."""
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith('num_batches_tracked'):
            tensors[key] = torch.zeros((), dtype=torch.int64)
        else:
            tensors[key] = torch.tensor(values_of(key, tuple(shape), prefix), dtype=torch.float32)
    return tensors


def fill_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the checksum that FILL.md defines, over all keys in their order."""
    digest = hashlib.sha256()
    for value in tensors.values():
        digest.update(np.ascontiguousarray(value.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def keys_of(name: str = 'state_dict.json') -> dict[str, tuple[int, ...]]:
    """Return the keys of a list of the goldens and their shapes."""
    content = json.loads((require_golden() / name).read_text())
    return {key: tuple(entry['shape']) for key, entry in content['keys'].items()}


def pictures(frame: int, prefix: str = '') -> torch.Tensor:
    """Return the pictures (1, 6, 3, 480, 800) of a frame, normalised and padded."""
    source = name_rng(f'{prefix}img_{frame}')
    fine = source.standard_normal((1, 6, 3, 450, 800))
    coarse = source.standard_normal((1, 6, 3, 15, 25)).repeat(30, axis=3).repeat(32, axis=4)
    padded = np.zeros((1, 6, 3, 480, 800), np.float32)
    padded[..., :450, :] = (0.5 * fine + coarse).astype(np.float32)
    return torch.from_numpy(padded)


def normal(name: str, shape: tuple[int, ...], factor: float = 1.0) -> torch.Tensor:
    """Return normal numbers of a name, times a factor, float32."""
    return torch.from_numpy((factor * name_rng(name).standard_normal(shape)).astype(np.float32))
