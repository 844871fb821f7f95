"""Loads weights of sparse backbones from all published forms. Uses torch.

Prefixes: BEVFusion (`encoders.lidar.backbone.`), CenterPoint (`backbone.`, det3d names), mmdet3d
(`pts_middle_encoder.`, `middle_encoder.`), any other or none; as state dict, `{'state_dict': ...}`, or
NVIDIA's pickled PTQ modules (`pickled`), perhaps folded (`folded_norms`).

`load_state_dict` is not used: mmdet3d's replacement permutes kernels of state dicts without torch's
`_metadata` version.
"""

from __future__ import annotations

import collections
import dataclasses
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import CheckpointError, UsageError, named
from mmdeploy_ext.upstream.weights.checkpoint import (
    INERT_PICKLE,
    PickledModelError,
    StandIn,
    check_finite,
    check_types,
    listed,
    load_checkpoint,
    misfits,
    plain_tensors,
)

# Kernel layouts of sparse convolutions, recognised by shape and converted.
#
#     spconv1        (k0, k1, k2, I, O)   spconv 1.x and mmcv.ops
#     spconv2        (O, k0, k1, k2, I)   spconv 2.x
#     spconv2-rskc   (k0, k1, k2, O, I)   spconv 2.0 and 2.1 with the algorithm Native
#
# Kernels are not mirrored. A 1x1x1 kernel's memory is an (I, O) matrix in all libraries, so it is never
# permuted (spconv issues 556 and 605).


LAYOUTS = ('spconv1', 'spconv2', 'spconv2-rskc')
CHOICES = ('auto', *LAYOUTS)
LIBRARIES = {'spconv': 'spconv2', 'mmcv': 'spconv1'}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The weight of a sparse convolution.

    Attributes:
        key: in the module's state dict.
        size: per axis.
        inputs, outputs: channels.
        layout: in the module.
        pointwise: a 1x1x1 convolution, computed as one matrix product.
    """

    key: str
    size: tuple[int, ...]
    inputs: int
    outputs: int
    layout: str
    pointwise: bool

    def shape(self, layout: str) -> tuple[int, ...]:
        if layout == 'spconv1':
            return (*self.size, self.inputs, self.outputs)
        if layout == 'spconv2':
            return (self.outputs, *self.size, self.inputs)
        return (*self.size, self.outputs, self.inputs)

    def candidates(self, shape: Iterable[int]) -> list[str]:
        """Layouts in which the kernel has this shape."""
        return [layout for layout in LAYOUTS if self.shape(layout) == tuple(shape)]

    def convert(self, weight: torch.Tensor, layout: str) -> torch.Tensor:
        """Convert a weight from `layout` to the module's, contiguous; pointwise memory is not permuted."""
        if self.pointwise:
            return weight.contiguous().reshape(self.shape(self.layout))
        ndim = len(self.size)
        if layout == 'spconv2':
            outputs, *space, inputs = range(ndim + 2)
        elif layout == 'spconv1':
            *space, inputs, outputs = range(ndim + 2)
        else:
            *space, outputs, inputs = range(ndim + 2)
        orders = {
            'spconv1': [*space, inputs, outputs],
            'spconv2': [outputs, *space, inputs],
            'spconv2-rskc': [*space, outputs, inputs],
        }
        return weight.permute(*orders[self.layout]).contiguous()


def find_kernels(module: torch.nn.Module) -> dict[str, Kernel]:
    """Kernels of all sparse convolutions of spconv 2 or mmcv.ops, by key of the weight."""
    kernels = {}
    for path, part in module.named_modules():
        bases = [base for base in type(part).__mro__ if base.__name__ == 'SparseConvolution']
        layout = LIBRARIES.get(bases[0].__module__.split('.')[0]) if bases else None
        if layout is not None:
            key = f'{path}.weight'.lstrip('.')
            size = tuple(int(length) for length in part.kernel_size)
            pointwise = bool(getattr(part, 'conv1x1', False))
            kernels[key] = Kernel(key, size, part.in_channels, part.out_channels, layout, pointwise)
    return kernels


def decide_layouts(
    path: str, shapes: Mapping[str, tuple[int, ...]], kernels: Mapping[str, Kernel], choice: str
) -> dict[str, str]:
    """Layout of every kernel of a file by its shape; ambiguous shapes follow the others.

    CheckpointError: a shape fits no layout, or the layouts stay open.
    """
    if choice not in CHOICES:
        raise UsageError(f'weight layout {choice!r} is unknown; expected one of {", ".join(CHOICES)}')
    candidates = {key: kernels[key].candidates(shape) for key, shape in shapes.items()}
    if choice != 'auto':
        candidates = {key: [choice] if choice in layouts else [] for key, layouts in candidates.items()}
    mismatches = [
        _mismatch(shapes[key], kernels[key], choice) for key, layouts in candidates.items() if not layouts
    ]
    if mismatches:
        rest = f'; and {len(mismatches) - 3} more' if len(mismatches) > 3 else ''
        raise CheckpointError(f'{path}: {"; ".join(mismatches[:3])}{rest}')
    unambiguous = {layouts[0] for layouts in candidates.values() if len(layouts) == 1}
    common = unambiguous.pop() if len(unambiguous) == 1 else None
    layout_of, undecided = {}, []
    for key, layouts in candidates.items():
        if len(layouts) == 1 or kernels[key].pointwise:
            layout_of[key] = layouts[0]
        elif common in layouts:
            layout_of[key] = common
        else:
            undecided.append(f'{key} {tuple(shapes[key])}: {" or ".join(layouts)}')
    if undecided:
        raise CheckpointError(
            f'{path}: the layout of {len(undecided)} kernels cannot be told from their shapes '
            f'({"; ".join(undecided[:3])}), and the others do not decide it; a wrong layout would load '
            'and give wrong results. Pass --weight-layout spconv1 or spconv2, the library of the training'
        )
    return layout_of


def _mismatch(shape: tuple[int, ...], kernel: Kernel, choice: str) -> str:
    layouts = LAYOUTS[:2] if choice == 'auto' else (choice,)
    expected = ' or '.join(f'{kernel.shape(layout)} ({layout})' for layout in layouts)
    text = f'{kernel.key} is {tuple(shape)}, expected {expected}'
    if choice != 'auto' and kernel.candidates(shape):
        return f'{text}; its shape is that of {" or ".join(kernel.candidates(shape))}'
    return text


# Reads the weights of a pickled model without running its code.
#
# NVIDIA's PTQ scripts save modules (`torch.save(model)`). All names except a few that build tensors become
# inert objects that keep their state.


CONVERT = (
    'Load it in its own environment and run `torch.save({"state_dict": model.state_dict()}, FILE)`, which '
    'also keeps the calibrated ranges'
)


def read_pickled(path: str | Path) -> dict[str, torch.Tensor]:
    """State dict of a pickled module, of its wrapper, or of a checkpoint with objects, on the CPU.

    Names are without one `module.`; quantisers' `_amax` are included. CheckpointError: unreadable this way.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about sources of classes that are not installed
            content = torch.load(path, map_location='cpu', weights_only=False, pickle_module=INERT_PICKLE)
        weights = dict(_find_weights(content))
    except Exception as error:  # hostile or exotic pickles may raise anything
        raise CheckpointError(
            f'{path}: holds a pickled model that cannot be read without running its code '
            f'({type(error).__name__}: {error}). {CONVERT}'
        ) from error
    if not weights:
        raise CheckpointError(f'{path}: has objects but no weights that mm2onnx can find. {CONVERT}')
    with named(path):
        return plain_tensors(weights)


def _find_weights(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(content, StandIn):
        yield from _module_weights(content, '')
    elif isinstance(content, dict):
        for name in ('state_dict', 'model'):
            if isinstance(content.get(name), dict | StandIn):
                yield from _find_weights(content[name])
                return
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                yield str(key), value


def _module_weights(module: StandIn, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    state = module.state if isinstance(module.state, dict) else {}
    parameters, buffers, children = (
        state[key] if isinstance(state.get(key), dict) else {}
        for key in ('_parameters', '_buffers', '_modules')
    )
    not_saved = state.get('_non_persistent_buffers_set')
    if isinstance(not_saved, set):
        buffers = {name: buffer for name, buffer in buffers.items() if name not in not_saved}
    for name, value in (*parameters.items(), *buffers.items()):
        if isinstance(value, torch.Tensor):
            yield f'{prefix}{name}', value.detach()
    for name, child in children.items():
        if isinstance(child, StandIn):
            yield from _module_weights(child, f'{prefix}{name}.')


# Names of a backbone saved after folding its batch normalisations.
#
# NVIDIA's PTQ scripts delete folded BatchNorms: the convolution gets a bias, and later layers of a sequence
# move up (`conv2.3.conv1` becomes `conv2.2.conv1`).


NORM_KEYS = ('weight', 'bias', 'running_mean', 'running_var')
"""Tensors that decide a BatchNorm."""


@dataclasses.dataclass
class Names:
    """Names of a module's tensors and submodules in a file.

    Attributes:
        keys: key of the module -> key in the file.
        paths: submodule in the file -> in the module.
        folded: missing BatchNorm of the module -> its convolution in the file, and eps.
    """

    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    folded: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)

    def file_keys(self) -> set[str]:
        return {*self.keys.values(), *(f'{path}.bias' for path, _ in self.folded.values())}

    def module_path(self, path: str) -> str:
        """Path in the module for a path in the file."""
        head, tail = path, ''
        while head and head not in self.paths:
            head, _, last = head.rpartition('.')
            tail = f'.{last}{tail}'
        return f'{self.paths.get(head, head)}{tail}'.lstrip('.')

    def norm_tensors(
        self, state_dict: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """float32 tensors (C,) for missing BatchNorms, by key of the module; they only add the bias."""
        tensors: dict[str, torch.Tensor] = {}
        for norm, (conv, eps) in self.folded.items():
            bias = weights[f'{conv}.bias'].float()
            ones = torch.ones_like(bias)
            # batch normalisation divides by sqrt(var + eps), which is 1 here
            values = zip(NORM_KEYS, (ones, bias, 0 * ones, ones - eps), strict=True)
            tensors |= {f'{norm}.{key}': value for key, value in values}
            conv_bias = f'{self.paths[conv]}.bias'
            if conv_bias in state_dict:
                tensors[conv_bias] = 0 * ones
        return tensors


def match_names(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> Names:
    """Names of a module's tensors in a file; only keys of `weights` are read.

    A BatchNorm counts as folded if the file lacks its `NORM_KEYS` and has a bias for the convolution before
    it.
    """
    names = Names()
    _add_names(module, '', '', weights, names)
    return names


def _add_names(
    module: nn.Module, prefix: str, file_prefix: str, weights: Mapping[str, torch.Tensor], names: Names
) -> None:
    names.paths[file_prefix.rstrip('.')] = prefix.rstrip('.')
    persistent = module.state_dict(keep_vars=True).keys()
    tensors = (*module._parameters, *module._buffers)
    names.keys.update({f'{prefix}{name}': f'{file_prefix}{name}' for name in tensors if name in persistent})
    conv, moved = None, 0
    for name, child in module.named_children():
        file_name = str(int(name) - moved) if name.isdigit() else name
        is_folded = (
            conv is not None
            and isinstance(child, nn.modules.batchnorm._BatchNorm)
            and f'{file_prefix}{conv}.bias' in weights
            and not any(f'{file_prefix}{file_name}.{key}' in weights for key in NORM_KEYS)
        )
        if is_folded:
            names.folded[f'{prefix}{name}'] = f'{file_prefix}{conv}', child.eps
            if name.isdigit():
                moved += 1
            continue
        _add_names(child, f'{prefix}{name}.', f'{file_prefix}{file_name}.', weights, names)
        conv = file_name if hasattr(child, 'kernel_size') else None


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
    kernels = find_kernels(module)
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
    layout_of = decide_layouts(source.path, shapes, kernels, weight_layout)
    weights.update({key: kernels[key].convert(weights[key], layout) for key, layout in layout_of.items()})
    _copy(parameters, weights)
    ranges = _quantiser_ranges(quantisers, names)
    report = LoadReport(source.path, source.form, prefix, layout_of, tuple(names.folded), ranges)
    return report, {prefix + key for key in (*tensors, *quantisers)}


def _find_prefix(source: Source, kernels: Sequence[Kernel]) -> str:
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
