"""Seeded weights by names and shapes alone, equal on every machine.

Source of the rules: FILL.md of the goldens in shared/golden.
"""

import functools
import math
import re
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.upstream.weights.convert.solo_names import original_name

COUNTER = 'num_batches_tracked'
Shapes = Mapping[str, Sequence[int]]
"""Key of a state dict -> shape of its tensor."""
ROOT2 = math.sqrt(2)
"""Gain of a layer behind a ReLU that keeps the deviation."""


def name_rng(name: str) -> np.random.Generator:
    """Return a random generator seeded by the name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def state_dict_by_name(
    shapes: Shapes, rule: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict[str, torch.Tensor]:
    """Return a float32 state dict by a rule of names and shapes; counters are 0, int64."""
    state_dict = {}
    for key, shape in shapes.items():
        if key.endswith(COUNTER):
            state_dict[key] = torch.zeros(tuple(shape), dtype=torch.int64)
        else:
            values = torch.tensor(rule(key, tuple(shape)), dtype=torch.float32)
            state_dict[key] = values.reshape(tuple(shape))
    return state_dict


def centred(normal: np.ndarray, gain: float | np.ndarray, axes: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a kernel of normal numbers (rows, ...): centred rows, times a gain over the root of length.

    `gain` may broadcast to `normal`; `axes` are centred, by default all but the first.
    """
    rows = normal - normal.mean(axis=axes or tuple(range(1, normal.ndim)), keepdims=True)
    return rows * gain / math.sqrt(math.prod(normal.shape[1:]))


def projection_gain(rows: int, query_key_gain: float, value_gain: float) -> np.ndarray:
    """Return the gain (rows, 1) of a projection: two thirds queries and keys, then values."""
    return np.where(np.arange(rows) < rows * 2 // 3, query_key_gain, value_gain)[:, None]


def first_match(rules: Mapping[str, Any], key: str) -> Any:
    """Return the value of the first pattern found in a key."""
    return next(value for pattern, value in rules.items() if re.search(pattern, key))


def norms_of(shapes: Shapes) -> set[str]:
    """Return the names of modules with a weight vector."""
    return {
        key.removesuffix('.weight')
        for key, shape in shapes.items()
        if key.endswith('.weight') and len(shape) == 1
    }


def vector_of(key: str, normal: np.ndarray, norms: Container[str]) -> np.ndarray:
    """Return the values of a bias or a normalisation's vector, from as many normal numbers."""
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith('running_mean'):
        return 0.05 * normal
    module, _, leaf = key.rpartition('.')
    if module in norms:
        return (1.0 if leaf == 'weight' else 0.0) + 0.05 * normal
    return 0.02 * normal


# ---------------------------------------------------------------- sparse backbones


def sparse_weights(shapes: Shapes, prefix: str = '') -> dict[str, np.ndarray]:
    """Return the state dict of a sparse backbone: float32, counters int64.

    `shapes` has kernels in spconv 1.x layout (k0, k1, k2, I, O); `prefix` goes before each key in the seed,
    e.g. 'encoders.lidar.backbone.'.
    """

    def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = name_rng(prefix + key).standard_normal(shape)
        if len(shape) == 5:
            return normal / np.sqrt(np.prod(shape[:4])) * np.sqrt(2)
        if key.endswith('.running_var'):
            return 1 + 0.1 * np.abs(normal)
        return 1 + 0.05 * normal if key.endswith('.weight') else 0.02 * normal

    return {key: tensor.numpy() for key, tensor in state_dict_by_name(shapes, rule).items()}


def fill_sparse_module(module: torch.nn.Module, prefix: str = '') -> dict[str, np.ndarray]:
    """Fill a module on spconv 2 (kernels (O, k0, k1, k2, I)) in place; return its weights."""
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    spconv1_shapes = {
        key: (*shape[1:], shape[0]) if len(shape) == 5 else shape for key, shape in shapes.items()
    }
    weights = sparse_weights(spconv1_shapes, prefix)
    # not load_state_dict: spconv's own hook guesses layouts
    parameters, modules = module.state_dict(keep_vars=True), dict(module.named_modules())
    with torch.no_grad():
        for key, array in weights.items():
            if array.ndim == 5 and modules[key.rpartition('.')[0]].conv1x1:
                array = array.reshape(parameters[key].shape)  # spconv reads its memory as (I, O)
            elif array.ndim == 5:
                array = np.ascontiguousarray(array.transpose(4, 0, 1, 2, 3))
            parameters[key].copy_(torch.from_numpy(array))
    return weights


# ---------------------------------------------------------------- RT-DETR

# pattern of keys -> standard deviation of the biases of class logits, whose mean is -3
RTDETR_BIASES = ((r'^decoder\.enc_score_head\.bias$', 1.0), (r'^decoder\.dec_score_head\.\d+\.bias$', 0.669))
# pattern of keys -> gain; the first match counts
RTDETR_GAINS = {
    r'^backbone\.res_layers\..*\.branch2c\.conv\.weight$': 0.5,
    r'^backbone\.': ROOT2,
    r'\.cross_attn\.(sampling_offsets|attention_weights)\.weight$': 1.0,
    r'\.cross_attn\.value_proj\.weight$': 1.2,
    r'^decoder\.query_pos_head\.layers\.0\.weight$': 2.0,
    r'^decoder\.(enc_bbox_head|dec_bbox_head\.\d+)\.layers\.2\.weight$': 0.5,
    r'^decoder\.(enc_bbox_head|dec_bbox_head\.\d+)\.layers\.[01]\.weight$': ROOT2,
    r'^decoder\.(enc_score_head|dec_score_head\.\d+)\.weight$': 1.5,
    r'^encoder\..*\.bottlenecks\.\d+\.conv[12]\.conv\.weight$': 1.3,
    r'^encoder\.(fpn_blocks|pan_blocks|lateral_convs|downsample_convs)\.': 1.6,
    r'': 1.0,
}
RTDETR_BASIC_BLOCK = r'^backbone\.res_layers\..*\.branch2b\.conv\.weight$'
"""Last convolutions of blocks of two."""


def rtdetr_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    bottlenecks = any('.branch2c.' in key for key in shapes)

    def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = name_rng(key).standard_normal(shape)
        if key.endswith(('running_var', 'running_mean', 'bias')) or (
            normal.ndim == 1 and key.endswith('.weight')
        ):
            return _rtdetr_vector(key, normal)
        if key == 'decoder.denoising_class_embed.weight':
            is_padding = np.arange(len(normal)) == len(normal) - 1
            return np.where(is_padding[:, None], 0.0, 0.1 * normal)
        if key.endswith('.self_attn.in_proj_weight'):
            return centred(normal, projection_gain(len(normal), 0.6, 1.0))
        if not bottlenecks and re.match(RTDETR_BASIC_BLOCK, key):
            return centred(normal, 0.5)
        return centred(normal, first_match(RTDETR_GAINS, key))

    return state_dict_by_name(shapes, rule)


def _rtdetr_vector(key: str, normal: np.ndarray) -> np.ndarray:
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith('running_mean'):
        return 0.05 * normal
    if key.endswith('.weight'):
        return 1 + 0.05 * normal
    for pattern, deviation in RTDETR_BIASES:
        if re.match(pattern, key):
            return -3 + deviation * normal
    return 0.02 * normal


# ---------------------------------------------------------------- StreamPETR
# Scores are neither constant nor chaotic: the gains keep queries apart and attention calm, so that float32
# noise does not grow.

STREAMPETR_CONSTANTS = {  # ranges and weights of the published config with 428 queries
    'pts_bbox_head.code_weights': [2.0, 2.0] + [1.0] * 8,
    'pts_bbox_head.match_costs': [2.0, 2.0] + [1.0] * 8,
    'pts_bbox_head.pc_range': [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
    'pts_bbox_head.position_range': [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
}
STREAMPETR_VECTORS = {  # pattern: offset and scale of a standard normal; the first match counts
    r'running_mean$': (0.0, 0.05),
    r'^norm\.weight$': (1.0, 0.05),
    r'^norm\.bias$': (0.0, 0.05),
    r'pts_bbox_head\.ego_pose_pe\.gamma\.bias$': (2.5, 0.05),
    r'\.gamma\.bias$': (1.0, 0.02),
    r'cls_branches\.\d+\.6\.bias$': (-2.0, 0.02),
    r'bias$': (0.0, 0.02),
}
STREAMPETR_GAINS = {
    r'img_backbone\.layer[1-4]\..*\.conv3\.weight$': 0.25,
    r'^img_backbone\.': ROOT2,
    r'pts_bbox_head\.position_encoder\.2\.weight$': 8.0,
    r'cls_branches\.\d+\.6\.weight$': 1.5,
    r'\.(gamma|beta)\.weight$': 0.3,
    r'': 1.0,
}
"""Pattern of keys -> gain; the first match wins."""


def streampetr_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    return state_dict_by_name(shapes, functools.partial(_streampetr_values, norms_of(shapes)))


def _streampetr_values(norms: Container[str], key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key in STREAMPETR_CONSTANTS:
        return np.array(STREAMPETR_CONSTANTS[key])
    if key == 'pts_bbox_head.coords_d':
        index = torch.arange(shape[0]).float()
        return (1 + torch.tensor(61.2 - 1) / (shape[0] * (1 + shape[0])) * index * (index + 1)).numpy()
    # the six branches are one module
    rng = name_rng(re.sub(r'(pts_bbox_head\.(cls|reg)_branches)\.\d+\.', r'\1.0.', key))
    if key.endswith('reference_points.weight'):
        return rng.uniform(0.0, 1.0, shape)
    normal = rng.standard_normal(shape)
    if key.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if len(shape) < 2:
        module, leaf = key.rsplit('.', 1)
        is_norm = module in norms and leaf in ('weight', 'bias')
        offset, scale = first_match(STREAMPETR_VECTORS, f'norm.{leaf}' if is_norm else key)
        return offset + scale * normal
    if key.endswith('in_proj_weight'):
        return centred(normal, projection_gain(len(normal), 0.6, 2.0))
    return centred(normal, first_match(STREAMPETR_GAINS, key))


# ---------------------------------------------------------------- SOLO

SOLO_CLASS_BIAS = -4.6
"""Bias of class logits: 1000 to 3000 of 309 760 scores pass the threshold."""
# factors of weights: on the two coordinates that are inputs of a layer, of the neck's lateral convolutions,
# and of the last normalisation of a residual block
SOLO_COORDINATE_GAIN = 8.0
SOLO_LATERAL_GAIN = 0.1
SOLO_RESIDUAL_GAIN = 0.25


def solo_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    decoupled = any('conv_mask_list_x.' in key for key in shapes)
    originals = {key: original_name(key, decoupled) for key in shapes}
    bottlenecks = {name.rpartition('.bn3.')[0] for name in originals.values() if '.bn3.' in name}
    return state_dict_by_name(shapes, lambda key, shape: _solo_values(bottlenecks, originals[key], shape))


def _solo_values(bottlenecks: Container[str], name: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = name_rng(name).standard_normal(shape)
    if name.endswith('running_var'):
        return 1 + 0.1 * np.abs(normal)
    if re.match(r'^bbox_head\.d?solo_cate\.bias$', name):
        return np.full(shape, SOLO_CLASS_BIAS)
    if name.endswith(('running_mean', '.bias')):
        return 0.02 * normal
    if len(shape) == 4:
        kernel = normal * math.sqrt(2 / math.prod(shape[1:]))
        if name.startswith('neck.lateral_convs.'):
            kernel *= SOLO_LATERAL_GAIN
        if shape[1] in (257, 258):  # with coordinates as the last inputs
            kernel[:, 256:] *= SOLO_COORDINATE_GAIN
        return kernel
    block, _, norm = name.removesuffix('.weight').rpartition('.')
    last_norm = 'bn3' if block in bottlenecks else 'bn2'
    is_residual = re.match(r'^backbone\.layer\d\.\d+$', block) and norm == last_norm
    return (1 + 0.05 * normal) * (SOLO_RESIDUAL_GAIN if is_residual else 1.0)


def solo_image(height: int, width: int) -> torch.Tensor:
    """Return SOLO's normalised input (1, 3, H, W) float32: coarse blocks and noise."""
    rng = name_rng('img')
    noise = rng.standard_normal((1, 3, height, width))
    blocks = rng.standard_normal((1, 3, math.ceil(height / 64), math.ceil(width / 64)))
    coarse = blocks.repeat(64, 2).repeat(64, 3)[:, :, :height, :width]
    return torch.from_numpy((coarse + 0.25 * noise).astype(np.float32))


def _fill_by(
    weights_of: Callable[[Shapes], dict[str, torch.Tensor]],
    model: nn.Module,
    cfg: Any,
    family: object,
    seed: int = 0,
) -> nn.Module:
    weights = model.state_dict()  # with the versions of its modules: heads rename keys of older ones
    weights.update(weights_of({key: tensor.shape for key, tensor in weights.items()}))
    model.load_state_dict(weights)
    return model


fill_rtdetr = functools.partial(_fill_by, rtdetr_weights)
fill_solo = functools.partial(_fill_by, solo_weights)
fill_streampetr = functools.partial(_fill_by, streampetr_weights)
