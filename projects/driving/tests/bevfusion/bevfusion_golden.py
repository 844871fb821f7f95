"""Stored tensors of the original BEVFusion, and the rules by which its weights and inputs are generated.

Sample a and the parts are in `tests/goldens/bevfusion`, sample b is in `../shared/golden/bevfusion`.
"""

import functools
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parents[4]
STORED, SHARED = REPO / 'tests/goldens/bevfusion', REPO.parent / 'shared/golden/bevfusion'
CONFIG = REPO / 'projects/configs/BEVFusion/bevfusion_camera_lidar_r50_nus.py'
GAINS = {
    'cam_resblock_conv3': 0.25, 'dtransform': 3, 'downsample_stride': 1.7, 'bev_square': 0.6, 'deconv': 3.2,
    'bev_decoder': 1.7, 'heatmap_out': 1.8, 'class_encoding': 1, 'posembed_out': 0.5,
    'dtransform_first': 0.05, 'posembed_first': 0.01,
}  # fmt: skip
PRED_GAINS = dict(center=4, height=6, dim=1.3, rot=2, vel=2, heatmap=2)


def existing(name):
    """Return the path of a golden file; skip the test if there is none."""
    for path in (STORED / name, SHARED / name):
        if path.is_file():
            return path
    pytest.skip(f'skipped: ../shared/golden/bevfusion/{name} not found')


@functools.cache
def stored(name):
    with np.load(existing(f'{name}.npz')) as content:
        return {key: content[key] for key in content.files}


@functools.cache
def keys():
    return json.loads(existing('state_dict.json').read_text())['keys']


def rng(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name, shape, kind):
    """Return the float32 value of a key, in the layout of spconv 1.x."""
    z = rng(name).standard_normal(shape)
    if kind == 'lidar':
        return lidar_weight(name, z)
    plain = dict(
        running_mean=lambda: 0.05 * z,
        running_var=lambda: 1 + 0.1 * abs(z),
        norm_weight=lambda: 1 + 0.05 * z,
        norm_bias=lambda: 0.05 * z,
        heatmap_bias=lambda: -2 - 0.6 * (np.arange(len(z)) >= 8) + 0.1 * z,
        dim_bias=lambda: 0.8 + 0.2 * z,
        bias=lambda: 0.02 * z,
    )
    if kind in plain:
        return plain[kind]().astype(np.float32)
    return kernel(name, z, kind).astype(np.float32)


def lidar_weight(name, z):
    if name.endswith('running_mean'):
        value = 0.02 * z
    elif name.endswith('running_var'):
        value = 1 + 0.1 * abs(z)
    elif name.endswith('bias'):
        value = 0.02 * z
    elif z.ndim == 1:
        value = 1 + 0.05 * z
    else:
        value = z / np.sqrt(np.prod(z.shape[:4])) * np.sqrt(2)
    return value.astype(np.float32)


def kernel(name, z, kind):
    fan_in = np.prod(z.shape[1:])
    if not kind.endswith('_first'):
        z = z - z.mean(axis=tuple(range(1, z.ndim)), keepdims=True)
    gain = np.full((len(z), *[1] * (z.ndim - 1)), GAINS.get(kind, np.sqrt(2)))
    if kind == 'depthnet_out':
        gain[:118], gain[118:] = 0.5, 3
    if kind == 'attn_in_proj':
        gain[:256], gain[256:] = 2, 1
    if kind == 'pred_out':
        gain[:] = PRED_GAINS[name.split('.')[-3]]
    if kind == 'fuser':
        gain = np.where(np.arange(336) < 80, 10.0, 3.0)[None, :, None, None]
    value = z * gain / np.sqrt(fan_in)
    if kind == 'bev_square':
        value[np.arange(len(z)), np.arange(len(z)), 1, 1] += 0.9
    return value


def filled(model):
    """Fill a model; returns the hash over all keys in the stored order."""
    state, digest = model.state_dict(), hashlib.sha256()
    assert set(state) == set(keys())
    for name, facts in keys().items():
        own = state[name]
        if facts['kind'] == 'keep':
            value = own.numpy()
        elif facts['kind'] == 'num_batches_tracked':
            value = np.zeros((), np.int64)
        else:
            value = weight(name, facts['shape'], facts['kind'])
            put = value.transpose(4, 0, 1, 2, 3) if value.ndim == 5 else value
            assert own.shape == put.shape, name
            own.copy_(torch.from_numpy(np.ascontiguousarray(put)))
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


@functools.cache
def model():
    """Return the detector with the weights of the goldens, and their hash."""
    from mmdet3d.models import build_model

    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.base.config import load_config

    built = build_model(load_config(str(CONFIG)).model).eval()
    with torch.no_grad():
        return built, filled(built)


def part(name):
    """Return an input of a part alone, float32."""
    draw = rng(f'part_{name}')
    shapes = dict(feat_in=(1, 80, 360, 360), camera=(1, 80, 180, 180), lidar=(1, 256, 180, 180))
    if name == 'img':
        value = draw.standard_normal((1, 6, 3, 256, 704))
    elif name == 'depth':
        shape = (1, 6, 1, 256, 704)
        hit = draw.uniform(size=shape) < 0.03
        value = np.where(hit, 1 + 59 * draw.uniform(size=shape), 0)
    elif name == 'middle':
        value = np.maximum(0.3 * draw.standard_normal((1, 512, 180, 180)), 0)
        value = value * np.exp(0.5 * draw.standard_normal((1, 1, 180, 180)))
    else:
        scale, shift = dict(feat_in=(1, -0.5), camera=(0.1, 0), lidar=(0.4, -0.4))[name]
        value = np.maximum(scale * draw.standard_normal(shapes[name]) + shift, 0)
    value = value.astype(np.float32)
    assert hashlib.sha256(value.tobytes()).hexdigest() == str(stored('parts')[f'{name}.sha256'])
    return torch.from_numpy(value)


def cells(tag):
    """Return the stored cell of every point of the frustum, (6, 118, 32, 88); 129600 outside of the grid."""
    content = stored(f'bev_cell_{tag}')
    x, y = (np.cumsum(content[name].astype(np.int64), 1) for name in ('dx', 'dy'))
    return np.where(x < 0, 360 * 360, 360 * x + y)


def picture(tag):
    """Return the pictures of a sample, (1, 6, 3, 256, 704)."""
    draw = rng(f'img_{tag}')
    fine, coarse = draw.standard_normal((1, 6, 3, 256, 704)), draw.standard_normal((1, 6, 3, 8, 22))
    value = (0.5 * fine + np.repeat(np.repeat(coarse, 32, 3), 32, 4)).astype(np.float32)
    assert hashlib.sha256(value.tobytes()).hexdigest() == str(stored(f'inputs_{tag}')['img.sha256'])
    return torch.from_numpy(value)


def difference(content, name, found):
    """Return the largest difference from the stored samples of a tensor."""
    index, value = content[f'{name}.idx'], content[f'{name}.val']
    assert tuple(found.shape) == tuple(content[f'{name}.shape'])
    return float(np.abs(found.detach().numpy().reshape(-1)[index] - value).max())


def heat_difference(stored_map, found):
    """Return the largest difference of a heat map (1, K, X, Y) from a stored one of every nth cell."""
    step = found.shape[-1] // stored_map.shape[-1]
    return float(np.abs(found.detach().numpy()[..., ::step, ::step] - stored_map).max())
