"""Loading the weights of sparse backbones, from every form in which they are published. Uses torch.

Sources, by the prefix of their keys: mit-han-lab's BEVFusion (`encoders.lidar.backbone.`), the published
CenterPoint (`backbone.`, det3d names), mmdet3d (`pts_middle_encoder.`, `middle_encoder.`), any other prefix
that one backbone in the file has, and none; as a state dict, in `{'state_dict': ...}`, or as a module that
NVIDIA's PTQ scripts pickled (`pickled`), whose batch normalisation may be folded already (`folded`).

Nothing goes through `load_state_dict`: mmdet3d replaces that of spconv's modules by one that permutes every
kernel unless the state dict still has the version that torch keeps beside it.
"""

import collections
import dataclasses
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.sparse.folded_norms import Names, match_names
from mmdeploy_ext.weights import sparse_layouts as layouts
from mmdeploy_ext.weights.checkpoint import listed, load_checkpoint, misfits
from mmdeploy_ext.weights.pickled import read_pickled

COUNTER = 'num_batches_tracked'
QUANTISER = '_quantizer.'


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was loaded, and how.

    Attributes:
        path: the file.
        form: 'state dict' or 'pickled module'.
        prefix: of the backbone's keys in the file.
        layouts: kernel's key in the module -> its layout in the file.
        folded: paths of batch normalisations that the file has folded into the convolution before them.
        ranges: '<module path>._input_quantizer' -> () float32, '<module path>._weight_quantizer' -> (O,)
            float32: amax of a PTQ file; module paths are those of the module that was loaded.
        rest: 'loaded', 'absent' or '': the other weights of the model, where it has any.
        unused: keys of the file that belong to neither.
    """

    path: str
    form: str
    prefix: str
    layouts: dict[str, str]
    folded: tuple[str, ...]
    ranges: dict[str, np.ndarray]
    rest: str = ''
    unused: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line for the user."""
        kinds = collections.Counter(self.layouts.values())
        parts = (
            f'{self.path}: {self.form}, keys ' + (f'{self.prefix}*' if self.prefix else 'without prefix'),
            ', '.join(f'{count} kernels in layout {kind}' for kind, count in sorted(kinds.items())),
            f'{len(self.folded)} batch norms folded' * bool(self.folded),
            f'{len(self.ranges)} calibrated ranges' * bool(self.ranges),
            "the model's other weights are not in it" * (self.rest == 'absent'),
        )
        return '; '.join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors of a file by name; its form is 'state dict' or 'pickled module'."""

    path: str
    form: str
    weights: dict[str, torch.Tensor]


def read_source(path: str | Path) -> Source:
    """Read a file of weights; one that holds code is read without running it, or a CheckpointError."""
    try:
        return Source(str(path), 'state dict', load_checkpoint(path).state_dict)
    except CheckpointError as error:
        cause = error.__cause__
        if not isinstance(cause, pickle.UnpicklingError) or 'nsupported' not in str(cause):
            raise
    return Source(str(path), 'pickled module', read_pickled(path))


def load_model(
    path: str | Path, model: nn.Module, encoder: str = '', *, weight_layout: str = 'auto'
) -> LoadReport:
    """Load a whole detector from a file, or only its sparse backbone where the file has no more, in place.

    Every key has to be accounted for.

    Args:
        path: any of the sources above.
        model: the detector, or the backbone itself, on spconv 2 or mmcv.ops.
        encoder: path of the backbone in the model; '' is the model.
        weight_layout: 'auto', 'spconv1', 'spconv2' or 'spconv2-rskc': of the file's kernels.

    Raises:
        CheckpointError: see `read_source`; a dense or other network's file, missing or unexpected keys,
            shapes or layouts that do not fit, a layout that cannot be told, values that are not finite; or
            some of the model's other weights are there and some not.
        UsageError: unknown layout.
    """
    source = read_source(path)
    own = model.state_dict(keep_vars=True) if encoder else {}
    others = {key: value for key, value in own.items() if not key.startswith(f'{encoder}.')}
    there = {key: source.weights[key] for key in others if key in source.weights}
    if there:
        _demand(source.path, others, there)
    report, used = _load(source, model.get_submodule(encoder), weight_layout)
    _copy(others, there)
    rest = '' if not others else 'loaded' if there else 'absent'
    unused = tuple(key for key in source.weights if key not in used and key not in there)
    return dataclasses.replace(report, rest=rest, unused=unused)


def _load(source: Source, module: nn.Module, weight_layout: str) -> tuple[LoadReport, set[str]]:
    """Load a backbone; the report, and the keys of the file that belong to it."""
    kernels = layouts.kernels(module)
    if not kernels:
        raise CheckpointError(f'{type(module).__name__}: has no sparse convolution, nothing to load into')
    prefix = _prefix(source, [*kernels.values()])
    inside = {key[len(prefix) :]: value for key, value in source.weights.items() if key.startswith(prefix)}
    quantised = {key: value for key, value in inside.items() if QUANTISER in key}
    inside = {key: value for key, value in inside.items() if key not in quantised}
    names = match_names(module, inside)
    own = module.state_dict(keep_vars=True)
    weights = {key: inside[names.keys[key]] for key in own if names.keys.get(key) in inside}
    weights.update(names.norm_tensors(own, inside))
    _demand(source.path, own, weights, unexpected=inside.keys() - names.file_keys(), skip_shapes=kernels)
    shapes = {key: tuple(weights[key].shape) for key in kernels}
    found = layouts.decide(source.path, shapes, kernels, weight_layout)
    weights.update({key: kernels[key].convert(weights[key], layout) for key, layout in found.items()})
    _copy(own, weights)
    ranges = _ranges(quantised, names)
    report = LoadReport(source.path, source.form, prefix, found, tuple(names.folded), ranges)
    return report, {prefix + key for key in (*inside, *quantised)}


def _prefix(source: Source, kernels: Sequence[layouts.Kernel]) -> str:
    """Return what stands before the backbone's keys in the file."""
    ndim = {len(kernel.size) + 2 for kernel in kernels}
    sparse = [key for key, value in source.weights.items() if value.ndim in ndim]
    if not sparse:
        raise CheckpointError(
            f'{source.path}: holds {len(source.weights)} tensors and no 5-D kernel: a dense network, or a '
            f'head without its sparse backbone; expected e.g. {kernels[0].key} of shape '
            f'{kernels[0].shape("spconv1")} or {kernels[0].shape("spconv2")}'
        )
    wanted = {kernel.key for kernel in kernels}
    counts: collections.Counter[str] = collections.Counter()
    for key in sparse:
        parts = key.split('.')
        cuts = ('.'.join(parts[:cut]) for cut in range(len(parts)))
        counts.update(cut and f'{cut}.' for cut in cuts if key[len(cut and f'{cut}.') :] in wanted)
    most = counts.most_common(2)
    if not most:
        raise CheckpointError(
            f'{source.path}: no sparse kernel has a name of this backbone: got {listed(sparse)}, expected '
            f'e.g. {kernels[0].key} behind some prefix. Use the config of this checkpoint'
        )
    if len(most) == 2 and most[0][1] == most[1][1] and most[0][1] > 1:
        raise CheckpointError(
            f'{source.path}: holds two backbones, {most[0][0]}* and {most[1][0]}*, that fit equally; save '
            f'the one that is meant as {{"state_dict": ...}}'
        )
    return most[0][0]


def _demand(
    path: str,
    own: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    *,
    unexpected: Iterable[str] = (),
    skip_shapes: Iterable[str] = (),
) -> None:
    """Raise unless the weights are just those that a module has, in shape and finite."""
    compared = {key: value for key, value in weights.items() if key not in set(skip_shapes)}
    missing = [key for key in own if key not in weights and not key.endswith(COUNTER)]
    problems = misfits(own, compared, missing, sorted(unexpected))
    if broken := [key for key, value in weights.items() if not bool(value.isfinite().all())]:
        problems += f'{"; " * bool(problems)}values that are not finite in {listed(broken)}'
    if problems:
        raise CheckpointError(
            f'{path}: does not fit the model of the config: {problems}. '
            f'Use the config that this checkpoint was trained with'
        )


@torch.no_grad()
def _copy(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    for key, value in weights.items():
        own[key].copy_(value)


def _ranges(quantised: Mapping[str, torch.Tensor], names: Names) -> dict[str, np.ndarray]:
    """Return the calibrated amax of a PTQ file by path of the quantiser in the module."""
    ranges = {}
    for key, value in quantised.items():
        path, _, buffer = key.rpartition('.')
        if buffer == '_amax':
            amax = np.asarray(value.detach().to(torch.float32).cpu())
            single = amax.size == 1 and not path.endswith('_weight_quantizer')
            ranges[names.module_path(path)] = amax.reshape(()) if single else amax.reshape(-1)
    return ranges
