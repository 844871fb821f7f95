"""Stored node lists and inputs of the reference exporter; tests are skipped where a file is not."""

import json
from pathlib import Path

import numpy as np
import pytest

from toy_seeded import digest, sparse_weights

ROOTS = (
    Path(__file__).resolve().parents[1] / 'goldens/scn',
    Path(__file__).resolve().parents[3] / 'shared/golden/scn',
)
"""Synthetic inputs and their outputs are in the repository; real sweeps are outside, and may be absent."""


def find(name):
    """Return the path of a file, None where it is in neither folder."""
    return next((root / name for root in ROOTS if (root / name).is_file()), None)


def existing(name):
    path = find(name)
    if path is None:
        pytest.skip(f'skipped: ../shared/golden/scn/{name} not found')
    return path


def node_list(name):
    """Return a stored node list without what says how it was made."""
    content = json.loads(existing(f'nodes/{name}.json').read_text())
    del content['about']
    return content


def state_dict_net(name):
    """Return one net of state_dict.json: its keys with shapes, its hash."""
    nets = json.loads(existing('state_dict.json').read_text())['nets']
    return next(net for net in nets if net['name'] == name)


def fill_sha256(shapes, prefix):
    """Return the hash of the weights that the rule gives a net of these keys."""
    return digest(sparse_weights(shapes, prefix))


def voxels(name):
    """Return features (N, 5) float32 and coordinates (N, 4) int32 (sample, x, y, z)."""
    with np.load(existing(f'numeric/{name}.npz')) as stored:
        return stored['features_f16'].astype(np.float32), stored['coords_bxyz_i16'].astype(np.int32)
