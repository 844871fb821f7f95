"""Weights, ranges and voxels by rule: reference outputs exist for networks that are filled this way.

Source: golden FILL.md.
"""

import hashlib
import zlib

import numpy as np

from dev.seeded.by_name import COUNTER, fill_sparse_module, sparse_weights
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution

__all__ = [
    'amax', 'centerpoint_ptq_path', 'digest', 'fill_sparse_module', 'input_range', 'sparse_weights', 'voxels',
]  # fmt: skip


def digest(state):
    """Return the hex SHA-256 of a filled state dict in its order, counters left out."""
    content = b''.join(array.tobytes() for key, array in state.items() if not key.endswith(COUNTER))
    return hashlib.sha256(content).hexdigest()


def input_range(quantiser):
    """Return the synthetic range of a quantiser, by its full path at PTQ time."""
    return 0.5 + (zlib.crc32(quantiser.encode()) % 64) / 16


def amax(graph, prefix='', half=False, drawn_as=str):
    """Return synthetic ranges of a folded graph by quantiser path, as a quantised checkpoint holds them."""
    ranges = {}
    for node in graph.nodes:
        if not isinstance(node, SparseConvolution | Add):
            continue
        path = f'{node.module}.quant_add' if isinstance(node, Add) else node.module
        ranges[f'{path}._input_quantizer'] = np.float32(
            input_range(f'{prefix}{drawn_as(path)}._input_quantizer')
        )
        if isinstance(node, SparseConvolution):
            ranges[f'{path}._weight_quantizer'] = np.abs(node.weight).max((1, 2, 3, 4)).astype(np.float32)
    if half:
        ranges = {path: values.astype(np.float16).astype(np.float32) for path, values in ranges.items()}
    return {f'{path}._amax': values for path, values in ranges.items()}


def centerpoint_ptq_path(path):
    """Return what the reference's CenterPoint calls a module at PTQ time, when its norm is folded away."""
    stage, number, *rest = path.split('.')
    if stage in ('conv2', 'conv3', 'conv4') and number in ('3', '4'):
        number = str(int(number) - 1)
    return '.'.join([stage, number, *rest])


def voxels():
    """Return the synthetic voxels: features (2942, 5) float32, coordinates (2942, 4) int32 (0, x, y, z)."""
    size = np.array([1440, 1440, 41])
    rng = np.random.default_rng(zlib.crc32(b'scn_synth_v1'))
    corners = np.array([[x, y, z] for x in (0, 1439) for y in (0, 1439) for z in (0, 40)])
    seeds = np.stack([rng.integers(0, limit, 400) for limit in size], 1)
    near = np.clip(seeds[:, None] + rng.integers(-2, 3, (400, 6, 3)), 0, size - 1).reshape(-1, 3)
    faces = np.stack([rng.integers(0, limit, 200) for limit in size], 1)
    points = np.arange(200)
    axes = points % 3
    faces[points, axes] = np.where(points // 3 % 2 == 0, 0, size[axes] - 1)
    every = np.concatenate([corners, seeds, near, faces])
    first = np.sort(np.unique(every, axis=0, return_index=True)[1])
    coordinates = np.pad(every[first], ((0, 0), (1, 0))).astype(np.int32)
    features = rng.standard_normal((len(coordinates), 5)).astype(np.float16)
    return features.astype(np.float32), coordinates
