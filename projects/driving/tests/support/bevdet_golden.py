"""The goldens' seeded weights and inputs of BEVDet, made again by the rule of FILL.md.

Source: ../shared/golden/bevdet/FILL.md. GOLDEN_BEVDET and GOLDEN_PREFIX name a set that is kept apart.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dev.seeded.bevdet import bevdet_weights
from dev.seeded.by_name import name_rng

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = Path(os.environ.get('GOLDEN_BEVDET', Path(__file__).resolve().parents[5] / 'shared/golden/bevdet'))
PREFIX = os.environ.get('GOLDEN_PREFIX', '')
CONFIGS = dict(
    r50='projects/configs/BEVDet/bevdet_r50.py',
    lt='projects/configs/BEVDet/bevdet_r50_4dlongterm_depth_cbgs.py',
)
HEADS = ('reg', 'height', 'dim', 'rot', 'vel', 'heatmap')


def require_golden() -> Path:
    """Return the folder of the goldens; skip the test where it is not."""
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/bevdet not found')
    return GOLDEN


def arrays(name: str) -> Any:
    return np.load(require_golden() / f'{name}.npz', allow_pickle=False)


def frame(name: str) -> dict[str, np.ndarray]:
    """Return the inputs of a frame, such as 'r50_f1'."""
    stored = arrays('inputs')
    return {key.removeprefix(f'{name}_'): stored[key] for key in stored.files if key.startswith(f'{name}_')}


def state_dict(name: str) -> dict[str, torch.Tensor]:
    keys = json.loads((require_golden() / f'state_dict_{name}.json').read_text())['keys']
    return bevdet_weights({key: tuple(shape) for key, (shape, _) in keys.items()}, PREFIX)


def fill_sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for value in tensors.values():
        digest.update(np.ascontiguousarray(value.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def picture(index: int) -> torch.Tensor:
    """Return the pictures (6, 3, 256, 704) of a key frame by the rule."""
    source = name_rng(f'{PREFIX}img_{index}')
    fine = source.standard_normal((6, 3, 256, 704))
    coarse = source.standard_normal((6, 3, 8, 22)).repeat(32, 2).repeat(32, 3)
    return torch.from_numpy((0.5 * fine + coarse).astype(np.float32))


def frames(name: str) -> Iterator[str]:
    """Yield the stored frames of a model that rule images are for."""
    yield from dict(r50=['r50_f1'], lt=['lt_f0', 'lt_f1'])[name]


def head_maps(name: str) -> dict[str, np.ndarray]:
    """Return the maps of the head that are stored in full."""
    stored = arrays('outputs')
    return {head: stored[f'{name}_{head}'] for head in HEADS}
