"""The goldens' seeded weights and inputs of BEVFormer, made again by the rule of FILL.md.

Source: ../shared/golden/bevformer/FILL.md.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import numpy as np
import torch

import upstream_goldens
from dev.seeded.bevformer import bevformer_weights
from dev.seeded.by_name import name_rng
from upstream_goldens import fill_sha256, normal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ['fill_sha256', 'keys_of', 'normal', 'pictures', 'state_dict']
IN_REPOSITORY = upstream_goldens.IN_REPOSITORY / 'bevformer'
require_golden = functools.partial(upstream_goldens.folder_of, 'bevformer')
LAST_LOGITS = (0.1, 0.0, -1.0, 0.2, 1.2, 0.8, 0.6, 0.4, 0.6, -0.1)
"""What is added to the logits' biases of the last layer."""
LAST_BIAS = 'pts_bbox_head.cls_branches.5.6.bias'


def state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return the seeded tensors of keys and shapes, with the logits of the last layer balanced."""
    tensors = bevformer_weights(shapes)
    if LAST_BIAS not in tensors:
        return tensors
    last = tensors[LAST_BIAS]
    numbers = name_rng(LAST_BIAS).standard_normal(len(last))
    balanced = -2.5 + 0.02 * numbers + np.array(LAST_LOGITS)
    tensors[LAST_BIAS] = torch.tensor(balanced, dtype=torch.float32)
    return tensors


def keys_of(name: str = 'state_dict.json') -> dict[str, tuple[int, ...]]:
    """Return the keys of a list of the goldens and their shapes."""
    content = json.loads((require_golden() / name).read_text())
    return {key: tuple(entry['shape']) for key, entry in content['keys'].items()}


def pictures(frame: int) -> torch.Tensor:
    """Return the pictures (1, 6, 3, 480, 800) of a frame, normalised and padded."""
    whole = upstream_goldens.pictures(f'img_{frame}', (450, 800), (30, 32))
    return torch.nn.functional.pad(whole, (0, 0, 0, 30))
