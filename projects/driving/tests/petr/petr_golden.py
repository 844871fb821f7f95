"""The goldens' seeded weights and inputs of PETR and PETRv2, made again by the rule of FILL.md.

Source: ../shared/golden/petr/FILL.md.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import torch

import upstream_goldens
from dev.seeded.petr import petr_weights
from projects.configs.petr_model import VOVNET_99, petr
from upstream_goldens import fill_sha256

__all__ = ['features', 'fill_sha256', 'head_config', 'meta_of', 'pictures', 'state_dict']
IN_REPOSITORY = upstream_goldens.IN_REPOSITORY / 'petr'
require_golden = functools.partial(upstream_goldens.folder_of, 'petr')
PICTURES = dict(v2=(320, 800, 1, 'img_{}'), v1r50=(512, 1408, 57, 'img57_{}'))
"""Model -> height, width, scale and name of its pictures."""


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
    return petr_weights(shapes) | constants


def features(number: int) -> torch.Tensor:
    """Return the feature maps (1, 12, 256, 20, 50) of the tests of the head alone."""
    return upstream_goldens.normal(f'feat_{number}', (1, 12, 256, 20, 50), 0.6)


def pictures(name: str, index: int) -> torch.Tensor:
    """Return the pictures (1, 6, 3, H, W) of a frame of a model, normalised."""
    height, width, scale, title = PICTURES[name]
    return upstream_goldens.pictures(title.format(index), (height, width), (32, 32), scale)


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
