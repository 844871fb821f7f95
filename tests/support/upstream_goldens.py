"""What the goldens of camera models share: folders outside of the repository, checksums, seeded numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from dev.seeded.by_name import name_rng

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARED = Path(__file__).resolve().parents[3] / 'shared/golden'
IN_REPOSITORY = Path(__file__).resolve().parents[1] / 'goldens'


def folder_of(name: str) -> Path:
    """Return the folder of a family's goldens; skip the test where it is not."""
    if not (SHARED / name).is_dir():
        pytest.skip(f'skipped: ../shared/golden/{name} not found')
    return SHARED / name


def fill_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the checksum that FILL.md defines, over all keys in their order."""
    digest = hashlib.sha256()
    for value in tensors.values():
        digest.update(np.ascontiguousarray(value.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def normal(name: str, shape: tuple[int, ...], factor: float = 1.0) -> torch.Tensor:
    """Return normal numbers of a name, times a factor, float32."""
    return torch.from_numpy((factor * name_rng(name).standard_normal(shape)).astype(np.float32))


def pictures(name: str, size: tuple[int, int], cell: tuple[int, int], scale: float = 1.0) -> torch.Tensor:
    """Return pictures (1, 6, 3, H, W) of a name: noise in pixels over noise in cells."""
    source, (height, width) = name_rng(name), size
    fine = source.standard_normal((1, 6, 3, height, width))
    coarse = source.standard_normal((1, 6, 3, height // cell[0], width // cell[1]))
    coarse = coarse.repeat(cell[0], axis=3).repeat(cell[1], axis=4)
    return torch.from_numpy((scale * (0.5 * fine + coarse)).astype(np.float32))
