"""Seeded weights of Sparse4D that depend on names and shapes alone.

The rows of kernels sum to zero, boxes move by small steps and the first layers of the anchors' embeddings
have large biases, so that every input moves the predictions and rounding does not grow. Source of the rule:
FILL.md beside the reference data of Sparse4D, which were made with these weights; `tests/sparse4d_golden.py`
reads them.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mmdeploy_ext.synthetic.seeded_by_name import centred, name_rng

INPUT_BIASES = dict(pos_fc=15.0, size_fc=1.0, yaw_fc=0.5, vel_fc=2.0)
"""Network of the anchors' embedding -> deviation of the biases of its first layer."""
STEPS = (0.4, 0.4, 0.16, 0.05, 0.05, 0.05, 0.1, 0.1, 0.08, 0.08, 0.01)
"""Scale of the step of each number of an anchor, m, m/s, or without unit."""
GAINS = (
    (r'^img_backbone\.layer[1-4]\..*conv3\.weight', 0.25),
    (r'^img_backbone\.', math.sqrt(2)),
    (r'\.weights_fc\.weight', 0.6),
    (r'\.output_proj\.weight', 6.0),
    (r'\.cls_layers\.6\.weight', 2.0),
    (r'\.layers\.10\.weight', 0.5),
    (r'', 1.0),
)
"""Pattern of a key -> gain of its kernel, whose rows sum to zero."""
RADIUS_M, HEIGHT_M, SIZE_M = 52.0, (-0.6, 0.8), (4.0, 1.8, 1.7)
"""Radius of the disc of the anchors' places, mean and deviation of their heights, and their mean sizes."""


def anchors_of(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return anchors (count, 11) around the car, see `models/sparse4d/blocks.py`."""
    radius, angle, turn = generator.uniform(0, 1, (count, 3)).T
    numbers = generator.standard_normal((count, 7))
    radius, angle, turn = RADIUS_M * np.sqrt(radius), 2 * np.pi * angle, 2 * np.pi * turn
    places = radius * np.cos(angle), radius * np.sin(angle), HEIGHT_M[0] + HEIGHT_M[1] * numbers[:, 0]
    sizes = np.log(SIZE_M) + 0.35 * numbers[:, 1:4]
    velocity = numbers[:, 4:] * np.array([2, 2, 0.1])
    return np.column_stack([*places, sizes, np.sin(turn), np.cos(turn), velocity])


def is_norm(key: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Return whether a vector is of a normalisation: its weight is a vector, too."""
    weight = f'{key.rpartition(".")[0]}.weight'
    return len(shapes.get(weight, ())) == 1


def vector_of(key: str, numbers: np.ndarray, shapes: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Return the values of a bias, of a norm or of the scales, from normal numbers."""
    network = re.search(r'anchor_encoder\.(\w+)\.0\.bias', key)
    if network:
        return INPUT_BIASES[network[1]] * numbers
    if key.endswith('.scale'):
        return np.array(STEPS) * (1 + 0.05 * numbers)
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(numbers)
    if key.endswith('running_mean'):
        return 0.05 * numbers
    if key.endswith('.cls_layers.6.bias'):
        return -3.6 + 0.1 * numbers
    if key.endswith('.quality_layers.6.bias'):
        return np.array([0.8, 0.0]) + 0.1 * numbers
    if is_norm(key, shapes):
        return (1.0 if key.endswith('.weight') else 0.0) + 0.05 * numbers
    return 0.02 * numbers


def kernel_of(key: str, numbers: np.ndarray) -> np.ndarray:
    """Return the values of a matrix or a kernel from normal numbers."""
    if re.search(r'anchor_encoder\.\w+\.0\.weight|camera_encoder\.0\.weight', key):
        return numbers
    gain = next(factor for pattern, factor in GAINS if re.search(pattern, key))
    if key.endswith('in_proj_weight'):
        gain = np.where(np.arange(len(numbers)) < len(numbers) * 2 // 3, 0.6, 2.0)[:, None]
    return centred(numbers, gain)


def values_of(
    key: str, shapes: Mapping[str, Sequence[int]], prefix: str, places: Mapping[str, torch.Tensor]
) -> np.ndarray:
    """Return the numbers of a key in float64; for the arguments see `sparse4d_weights`."""
    if key.endswith('fix_scale'):
        return places[key].numpy().astype(np.float64)
    generator, shape = name_rng(prefix + key), tuple(shapes[key])
    if key.endswith('instance_bank.anchor'):
        return anchors_of(generator, shape[0])
    numbers = generator.standard_normal(shape)
    if key.endswith('instance_feature'):
        return 0.3 * numbers
    return vector_of(key, numbers, shapes) if len(shape) == 1 else kernel_of(key, numbers)


def sparse4d_weights(state: Mapping[str, torch.Tensor], prefix: str = '') -> dict[str, torch.Tensor]:
    """Return seeded tensors for the keys of a state dict, float32, counters int64.

    Args:
        state: of the model as it was built; the places of its fixed key points stay as they are.
        prefix: of all names when numbers are drawn: another one gives other weights.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    tensors = {}
    for key in shapes:
        if key.endswith('num_batches_tracked'):
            tensors[key] = torch.zeros((), dtype=torch.int64)
        else:
            tensors[key] = torch.tensor(values_of(key, shapes, prefix, state), dtype=torch.float32)
    return tensors
