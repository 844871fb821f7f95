"""The goldens' seeded weights and inputs of BEVFormer, made again by the rule of FILL.md.

Source: ../shared/golden/bevformer/FILL.md. `prefix` is 'heldout:' for the set that is kept apart.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mmdeploy_ext.seeded.bevformer import bevformer_weights
from mmdeploy_ext.seeded.by_name import name_rng

if TYPE_CHECKING:
    from collections.abc import Mapping

GOLDEN = Path(__file__).resolve().parents[4] / 'shared/golden/bevformer'
IN_REPOSITORY = Path(__file__).resolve().parents[2] / 'goldens/bevformer'
LAST_LOGITS = {
    '': (0.1, 0.0, -1.0, 0.2, 1.2, 0.8, 0.6, 0.4, 0.6, -0.1),
    'heldout:': (0.8, -0.1, 1.2, -0.1, 0.3, 0.5, 0.8, 0.6, 0.1, -0.3),
}
"""Prefix of the names -> what is added to the logits' biases of the last layer."""
LAST_BIAS = 'pts_bbox_head.cls_branches.5.6.bias'


def require_golden() -> Path:
    """Return the folder of the goldens; skip the test where it is not."""
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/bevformer not found')
    return GOLDEN


def state_dict(shapes: Mapping[str, tuple[int, ...]], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return the seeded tensors of keys and shapes, with the logits of the last layer balanced."""
    tensors = bevformer_weights(shapes, prefix)
    if LAST_BIAS not in tensors:
        return tensors
    last = tensors[LAST_BIAS]
    numbers = name_rng(prefix + LAST_BIAS).standard_normal(len(last))
    balanced = -2.5 + 0.02 * numbers + np.array(LAST_LOGITS[prefix])
    tensors[LAST_BIAS] = torch.tensor(balanced, dtype=torch.float32)
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
