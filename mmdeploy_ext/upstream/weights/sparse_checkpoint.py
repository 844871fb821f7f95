"""Loads weights of sparse backbones from all published forms. Uses torch.

Prefixes: BEVFusion (`encoders.lidar.backbone.`), CenterPoint (`backbone.`, det3d names), mmdet3d
(`pts_middle_encoder.`, `middle_encoder.`), any other or none; as state dict, `{'state_dict': ...}`, or
NVIDIA's pickled PTQ modules (`pickled`), perhaps folded (`folded_norms`).

`load_state_dict` is not used: mmdet3d's replacement permutes kernels of state dicts without torch's
`_metadata` version.
"""

import collections
import dataclasses
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import CheckpointError
from mmdeploy_ext.upstream.weights import sparse_layouts as layouts
from mmdeploy_ext.upstream.weights.checkpoint import (
    PickledModelError,
    check_finite,
    check_types,
    listed,
    load_checkpoint,
    misfits,
)
from mmdeploy_ext.upstream.weights.folded_norms import Names, match_names
from mmdeploy_ext.upstream.weights.pickled import read_pickled

COUNTER = 'num_batches_tracked'
QUANTISER = '_quantizer.'


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Facts about loaded weights.

    Attributes:
        form: 'state dict' or 'pickled module'.
        prefix: of the backbone's keys in the file, such as 'backbone.', or ''.
        layouts: kernel of the backbone -> layout in the file.
        folded: batch normalisations folded in the file.
        ranges: '<module>._input_quantizer' -> () float32, '<module>._weight_quantizer' -> (O,) float32: amax
            of a PTQ file, unchecked.
        rest: other weights: 'loaded', 'absent', or '' without any.
        unused: keys without use.
        encoder: path of the backbone in the model, or ''.
    """

    path: str
    form: str
    prefix: str
    layouts: dict[str, str]
    folded: tuple[str, ...]
    ranges: dict[str, np.ndarray]
    rest: str = ''
    unused: tuple[str, ...] = ()
    encoder: str = ''

    def summary(self) -> str:
        """One line, without `unused`."""
        keys = f'{self.prefix}*' if self.prefix else 'without prefix'
        counts = collections.Counter(self.layouts.values())
        parts = [f'{self.path}: {self.form}, keys {keys}']
        if counts:
            parts.append(
                ', '.join(f'{count} kernels in layout {name}' for name, count in sorted(counts.items()))
            )
        if self.folded:
            parts.append(f'{len(self.folded)} batch norms folded')
        if self.ranges:
            parts.append(f'{len(self.ranges)} calibrated ranges')
        if self.rest == 'absent':
            parts.append("it lacks the model's other weights")
        return '; '.join(parts)


@dataclasses.dataclass(frozen=True)
class Source:
    path: str
    form: str
    weights: dict[str, torch.Tensor]


def read_source(path: str | Path) -> Source:
    """Read a file of weights; a pickled module's code is not run."""
    try:
        return Source(str(path), 'state dict', load_checkpoint(path).state_dict)
    except PickledModelError:
        pass
    except CheckpointError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError) or not _is_pickle(path):
            raise
    return Source(str(path), 'pickled module', read_pickled(path))


def _is_pickle(path: str | Path) -> bool:
    with open(path, 'rb') as file:
        return file.read(2) in (b'PK', b'\x80\x02')


def load_model(
    path: str | Path, model: nn.Module, encoder: str = '', *, weight_layout: str = 'auto'
) -> LoadReport:
    """Load a detector in place, or only its sparse backbone if the file has no other weights.

    Folded BatchNorms add the bias of their convolution. `encoder` is the backbone's path in the model;
    `weight_layout` is 'auto' or one of `LAYOUTS`. CheckpointError: anything does not fit; nothing was changed
    then.
    """
    source = read_source(path)
    parameters = model.state_dict(keep_vars=True) if encoder else {}
    other_parameters = {key: value for key, value in parameters.items() if not key.startswith(f'{encoder}.')}
    other_weights = {key: source.weights[key] for key in other_parameters if key in source.weights}
    if other_weights:
        _check_weights(source.path, other_parameters, other_weights)
    report, used = _load_backbone(source, model.get_submodule(encoder), weight_layout)
    _copy(other_parameters, other_weights)
    rest = ''
    if other_parameters:
        rest = 'loaded' if other_weights else 'absent'
    unused = tuple(key for key in source.weights if key not in used and key not in other_weights)
    return dataclasses.replace(report, rest=rest, unused=unused, encoder=encoder)


def _load_backbone(source: Source, module: nn.Module, weight_layout: str) -> tuple[LoadReport, set[str]]:
    kernels = layouts.find_kernels(module)
    if not kernels:
        raise CheckpointError(f'{type(module).__name__}: has no sparse convolution, nothing to load into')
    prefix = _find_prefix(source, [*kernels.values()])
    tensors = {key[len(prefix) :]: value for key, value in source.weights.items() if key.startswith(prefix)}
    quantisers = {key: value for key, value in tensors.items() if QUANTISER in key}
    tensors = {key: value for key, value in tensors.items() if key not in quantisers}
    names = match_names(module, tensors)
    parameters = module.state_dict(keep_vars=True)
    weights = {key: tensors[names.keys[key]] for key in parameters if names.keys.get(key) in tensors}
    weights.update(names.norm_tensors(parameters, tensors))
    unexpected = tensors.keys() - names.file_keys()
    _check_weights(source.path, parameters, weights, unexpected=unexpected, skip_shapes=kernels)
    shapes = {key: tuple(weights[key].shape) for key in kernels}
    layout_of = layouts.decide_layouts(source.path, shapes, kernels, weight_layout)
    weights.update({key: kernels[key].convert(weights[key], layout) for key, layout in layout_of.items()})
    _copy(parameters, weights)
    ranges = _quantiser_ranges(quantisers, names)
    report = LoadReport(source.path, source.form, prefix, layout_of, tuple(names.folded), ranges)
    return report, {prefix + key for key in (*tensors, *quantisers)}


def _find_prefix(source: Source, kernels: Sequence[layouts.Kernel]) -> str:
    """The prefix before most names of kernels."""
    ndim = {len(kernel.size) + 2 for kernel in kernels}
    sparse = [key for key, value in source.weights.items() if value.ndim in ndim]
    if not sparse:
        raise CheckpointError(
            f'{source.path}: holds {len(source.weights)} tensors and no kernel of '
            f'{" or ".join(map(str, sorted(ndim)))} axes: a dense network, or a '
            f'head without its sparse backbone; expected e.g. {kernels[0].key} of shape '
            f'{kernels[0].shape("spconv1")} or {kernels[0].shape("spconv2")}'
        )
    kernel_keys = {kernel.key for kernel in kernels}
    counts: collections.Counter[str] = collections.Counter()
    for key in sparse:
        parts = key.split('.')
        for length in range(len(parts)):
            prefix = ''.join(f'{part}.' for part in parts[:length])
            if key.removeprefix(prefix) in kernel_keys:
                counts[prefix] += 1
    if not counts:
        raise CheckpointError(
            f'{source.path}: no sparse kernel has a name of this backbone: got {listed(sparse)}, expected '
            f'e.g. {kernels[0].key} behind some prefix. Use the config of this checkpoint'
        )
    (prefix, count), *rest = counts.most_common(2)
    if rest and rest[0][1] == count and (count > 1 or len(kernels) == 1):
        raise CheckpointError(
            f'{source.path}: holds two backbones, {prefix}* and {rest[0][0]}*, that fit equally; save the '
            f'one to use as {{"state_dict": ...}}'
        )
    return prefix


def _check_weights(
    path: str,
    parameters: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    *,
    unexpected: Iterable[str] = (),
    skip_shapes: Iterable[str] = (),
) -> None:
    skipped = set(skip_shapes)
    compared = {key: value for key, value in weights.items() if key not in skipped}
    missing = [key for key in parameters if key not in weights and not key.endswith(COUNTER)]
    if problems := misfits(parameters, compared, missing, sorted(unexpected)):
        raise CheckpointError(
            f'{path}: does not fit the model of the config: {problems}. '
            f'Use the config that this checkpoint was trained with'
        )
    check_types(path, weights, parameters)
    check_finite(path, weights, parameters)


@torch.no_grad()
def _copy(parameters: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    for key, value in weights.items():
        parameters[key].copy_(value)


def _quantiser_ranges(quantisers: Mapping[str, torch.Tensor], names: Names) -> dict[str, np.ndarray]:
    ranges = {}
    for key, value in quantisers.items():
        path, _, buffer = key.rpartition('.')
        if buffer == '_amax':
            amax = np.asarray(value.detach().to(torch.float32).cpu())
            is_single = amax.size == 1 and not path.endswith('_weight_quantizer')
            ranges[names.module_path(path)] = amax.reshape(()) if is_single else amax.reshape(-1)
    return ranges
