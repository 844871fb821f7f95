"""The goldens' seeded weights and inputs of PETR and PETRv2, made again by the rule of FILL.md.

Source: ../shared/golden/petr/FILL.md. Another set, made by the same program with a prefix before all names,
is taken by the environment variables GOLDEN_PETR and GOLDEN_PREFIX.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mmdeploy_ext.seeded.by_name import name_rng
from mmdeploy_ext.seeded.petr import petr_weights
from projects.configs.petr_model import VOVNET_99, petr

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIPPED = Path(__file__).resolve().parents[4] / 'shared/golden/petr'
IN_REPOSITORY = Path(__file__).resolve().parents[2] / 'goldens/petr'
GOLDEN, PREFIX = Path(os.environ.get('GOLDEN_PETR', SHIPPED)), os.environ.get('GOLDEN_PREFIX', '')
PICTURES = dict(v2=(320, 800, 1, 'img_{}'), v1r50=(512, 1408, 57, 'img57_{}'))
"""Model -> height, width, scale and name of its pictures."""


def require_golden() -> Path:
    """Return the folder of the goldens; skip the test where it is not."""
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/petr not found')
    return GOLDEN


def head_config(name: str) -> dict:
    """Return the published config of a head, PETR's or PETRv2's."""
    return petr(VOVNET_99, [768, 1024], second=name == 'v2')['pts_bbox_head']


def state_dict(name: str, prefix: str = '') -> dict[str, torch.Tensor]:
    """Return the seeded tensors of 'v2' or 'v1r50' whose keys begin with a prefix."""
    content = json.loads((require_golden() / f'state_dict_{name}.json').read_text())
    shapes = {key: torch.empty(entry['shape'], device='meta') for key, entry in content['keys'].items()}
    if prefix:
        shapes = {key: tensor for key, tensor in shapes.items() if key.startswith(prefix)}
    constants = {
        key: torch.tensor(value) for key, value in content['kept_constants'].items() if key in shapes
    }
    return petr_weights(shapes, PREFIX) | constants


def fill_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the checksum that FILL.md defines, over all keys in their order."""
    digest = hashlib.sha256()
    for value in tensors.values():
        digest.update(np.ascontiguousarray(value.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def features(number: int) -> torch.Tensor:
    """Return the feature maps (1, 12, 256, 20, 50) of the tests of the head alone."""
    normal = name_rng(f'{PREFIX}feat_{number}').standard_normal((1, 12, 256, 20, 50))
    return torch.from_numpy((0.6 * normal).astype(np.float32))


def pictures(name: str, index: int) -> torch.Tensor:
    """Return the pictures (1, 6, 3, H, W) of a frame of a model, normalised."""
    height, width, scale, title = PICTURES[name]
    source = name_rng(PREFIX + title.format(index))
    fine = source.standard_normal((1, 6, 3, height, width))
    coarse = (
        source.standard_normal((1, 6, 3, height // 32, width // 32)).repeat(32, axis=3).repeat(32, axis=4)
    )
    return torch.from_numpy((scale * (0.5 * fine + coarse)).astype(np.float32))


def meta_of(frame: str) -> dict:
    """Return the metas of a frame such as 'v2_f5', each matrix in the precision that upstream has."""
    inputs = np.load(require_golden() / 'inputs.npz')
    flags = inputs[f'{frame}_lidar2img_is_float32']
    matrices = inputs[f'{frame}_lidar2img']
    return dict(
        lidar2img=[
            matrix.astype(np.float32 if is_single else np.float64)
            for matrix, is_single in zip(matrices, np.broadcast_to(flags, len(matrices)), strict=True)
        ],
        pad_shape=[tuple(shape) for shape in inputs[f'{frame}_pad_shape']],
        img_shape=[tuple(shape) for shape in inputs[f'{frame}_img_shape']],
        timestamp=inputs[f'{frame}_timestamp'],
    )
