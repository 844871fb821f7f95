"""The goldens' seeded weights and inputs, made again by the rule of FILL.md.

Source: ../shared/golden/streampetr/FILL.md. All numbers come from numpy's PCG64, seeded by the CRC of a
name, and are float64 until the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).resolve().parents[2] / 'shared/golden/streampetr'
NUM_FRAMES = 6
FILL_SHA256 = 'bba33ba071b48a7543f34e9329bc98494e07164c0b6452f031f68e46c8577f3b'

# the first match wins; the ranges and weights are what the golden's config says
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


def require_golden() -> Path:
    """Return the folder of the goldens; skip the test where it is not."""
    if not GOLDEN.is_dir():
        pytest.skip('skipped: ../shared/golden/streampetr not found')
    return GOLDEN


def rng(name: str) -> np.random.Generator:
    """Return the generator of one name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def seeded_state_dict(shapes: dict[str, list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Return the seeded value of every key.

    Args:
        shapes: key -> shape; those of the golden's model if not given. Other models get their own values.
    """
    if shapes is None:
        keys = json.loads((require_golden() / 'state_dict.json').read_text())['keys']
        shapes = {key: entry['shape'] for key, entry in keys.items()}
    norms = {
        key.rsplit('.', 1)[0] for key, shape in shapes.items() if key.endswith('.weight') and len(shape) == 1
    }
    return {key: _fill(key, tuple(shape), norms) for key, shape in shapes.items()}


def _fill(key: str, shape: tuple[int, ...], norms: set[str]) -> torch.Tensor:
    if key.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.int64)
    values = torch.from_numpy(np.asarray(_values(key, shape, norms), dtype=np.float32).copy())
    return values.reshape(shape)


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
        offset, scale = _first(
            VECTORS, f'norm.{leaf}' if module in norms and leaf in ('weight', 'bias') else key
        )
        return offset + scale * normal
    return _matrix(key, normal)


def _matrix(key: str, normal: np.ndarray) -> np.ndarray:
    centred = normal - normal.mean(axis=tuple(range(1, normal.ndim)), keepdims=True)
    if key.endswith('in_proj_weight'):
        # queries and keys stay small, values do not
        gain = np.where(np.arange(len(normal)) < len(normal) * 2 // 3, 0.6, 2.0)[:, None]
    else:
        gain = _first(GAINS, key)
    return centred * gain / math.sqrt(math.prod(normal.shape[1:]))


def _first(rules: dict, key: str) -> object:
    return next(value for pattern, value in rules.items() if re.search(pattern, key))


def fill_sha256(state_dict: dict[str, torch.Tensor]) -> str:
    """Return the checksum that FILL.md defines, over all keys in their order."""
    digest = hashlib.sha256()
    for value in state_dict.values():
        digest.update(np.ascontiguousarray(value.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def golden_images(frame: int) -> torch.Tensor:
    """Return the images (1, 6, 3, 256, 704) of a frame, normalised already."""
    source = rng(f'img_{frame}')
    fine = source.standard_normal((1, 6, 3, 256, 704))
    coarse = source.standard_normal((1, 6, 3, 8, 22)).repeat(32, axis=3).repeat(32, axis=4)
    return torch.from_numpy((0.5 * fine + coarse).astype(np.float32))


def golden_features(frame: int) -> torch.Tensor:
    """Return the features (1, 6, 256, 16, 44) of a frame of head_only.npz."""
    normal = rng(f'feat_{frame}').standard_normal((1, 6, 256, 16, 44))
    return torch.from_numpy((1.3 * normal).astype(np.float32))


def golden_frame(inputs: dict[str, np.ndarray], frame: int) -> dict[str, torch.Tensor]:
    """Return a frame's calibration, poses, time and `prev_exists` from inputs.npz, with a batch axis."""
    names = ('lidar2img', 'intrinsics', 'extrinsics', 'ego_pose', 'ego_pose_inv', 'timestamp')
    data = {name: torch.as_tensor(inputs[f'f{frame}_{name}']).unsqueeze(0) for name in names}
    return {**data, 'prev_exists': torch.as_tensor(inputs[f'f{frame}_prev_exists'])}
