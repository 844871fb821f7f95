"""Level 1 of the PyTorch model: is it the user's config, built by its class, with the weights of the file?

Graphs and reference outputs both come from `Deployment.model`, so that a fault of what reads configs, builds
models or loads weights would be in both, and no input could show it. Here mmcv reads the config once more,
the class of the model builds it once more, and PyTorch alone reads the checkpoint and puts its tensors into
that: no function that `exporting/deployment.py` loads a model by is called.
"""

from __future__ import annotations

import collections
import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmdeploy_ext.compat import numpy_checkpoint_globals
from mmdeploy_ext.core.config import installed_bases, read_config
from mmdeploy_ext.core.yaml_config import SUFFIXES
from mmdeploy_ext.families.building import built_unpretrained
from mmdeploy_ext.families.module_settings import module_settings, settings
from mmdeploy_ext.proving.provenance import names_in_checkpoint, setting_at
from mmdeploy_ext.proving.results import Check
from mmdeploy_ext.weights.checkpoint import MMENGINE_GLOBALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.exporting.deployment import Deployment

DECIDING = ('model', 'test_cfg', 'data.test', 'data.val', 'test_pipeline', 'classes', 'class_names')
"""Entries of a config that decide what a detector computes, how its samples are prepared, or class names.

Others, such as a folder with the time in its name, may differ whenever mmcv runs the file.
"""
KERNEL_ORDERS = (
    (4, 0, 1, 2, 3),  # (k0, k1, k2, I, O) of spconv 1 and mmcv.ops in spconv 2
    (3, 0, 1, 2, 4),  # (k0, k1, k2, O, I) of spconv 2.0 and 2.1 in spconv 2
    (1, 2, 3, 4, 0),  # (O, k0, k1, k2, I) of spconv 2 in mmcv.ops
    (0, 1, 2, 4, 3),  # (k0, k1, k2, O, I) in mmcv.ops
)
"""Orders in which a model may have the axes of a file's kernels of sparse convolutions, if not in theirs."""
KERNEL_AXES = 5
"""Number of axes of such kernels."""
MAX_TEXT = 300
"""Length to which the text about a difference is cut."""


def user_model_checks(deployment: Deployment) -> list[Check]:
    """Compare config, model and weights of a deployment with those that mmcv, its class and PyTorch make.

    Each of them has a check, and so have settings that the family adds, if there are any.

    A config that a family translates, and a model that it builds of another config than the user's, such as
    the student of a distilled one, are not built again: then only config and weights are compared. There are
    no checks if the config or the checkpoint is no file.
    """
    if not Path(deployment.config).is_file() or not Path(deployment.checkpoint).is_file():
        return []
    config = config_by_mmcv(deployment.config, deployment.cfg_options)
    built_from = deployment.unbuilt_cfg or deployment.cfg
    config_text = config_difference(built_from.get('as_read', built_from), config)
    checks = [Check('config as mmcv reads it', not config_text, config_text)]
    content = content_by_torch(deployment.checkpoint)
    if added := deployment.family.expected_settings(config, content.get('meta') or {}):
        of_model = settings({name: getattr(deployment.model, name, None) for name in added})
        of_config = settings(added)
        added_text = f'model{first_difference(of_model, of_config)}' if of_model != of_config else ''
        checks.append(Check('settings that its family adds', not added_text, added_text))
    tensors = {
        key.removeprefix('module.'): tensor
        for key, tensor in content.get('state_dict', content).items()
        if isinstance(tensor, torch.Tensor)
    }
    if not getattr(deployment.report, 'folded', ()):  # a file whose norms are folded has other names, too
        tensors = under_names_of(deployment.model.state_dict(), tensors)
    fresh = None if 'as_read' in built_from else built_by_class(type(deployment.model), config)
    if fresh is None:
        weights = deployment.family.checkpoint_weights(deployment.model)
    else:
        loaded = deployment.loaded_settings or module_settings(deployment.model)
        named = deployment.family.with_further_names(fresh)
        model_text = model_difference(loaded, module_settings(named))
        checks.append(Check('model as its class builds it', not model_text, model_text))
        weights = deployment.model.state_dict()
        tensors = loaded_tensors(fresh, tensors)
    weights_text = weights_difference(weights, tensors) or names_difference(deployment.report, content)
    return [*checks, Check('weights as in the checkpoint', not weights_text, weights_text)]


def names_difference(report: Any, content: Mapping[str, Any]) -> str:
    """Return how the class names that were read of a checkpoint differ from those in it; '' if they do not.

    Args:
        report: what `Family.load` returned; without `meta` no names were read.
        content: what the checkpoint holds.
    """
    if getattr(report, 'meta', None) is None:
        return ''
    meta = content.get('meta') if 'state_dict' in content else None
    got, expected = (
        next(iter(names_in_checkpoint(source)), []) for source in (report.meta, dict(meta or {}))
    )
    return f'its class names are read as {got}, expected {expected}'[:MAX_TEXT] if got != expected else ''


def config_by_mmcv(path: str, overrides: Mapping[str, Any]) -> Any:
    """Return the `mmcv.Config` of a file as mmcv reads it, with overrides, key with dots -> value.

    A YAML config, which mmcv 1.7.2 reads without the bases that torchpack gives it, is read as for the
    export.
    """
    from mmcv import Config

    if Path(path).suffix in SUFFIXES:
        return read_config(path, overrides)
    with installed_bases():
        config = Config.fromfile(path, import_custom_modules=False)
    config.merge_from_dict(copy.deepcopy(dict(overrides)))  # mmcv removes `_delete_` from it
    return config


def content_by_torch(path: str) -> Any:
    """Return the content of the checkpoint at `path`, by `torch.load` alone; tensors are on the CPU.

    It is one that was loaded before, and so can be read.
    """
    allowed = [*numpy_checkpoint_globals(), *MMENGINE_GLOBALS]
    listed = torch.serialization.get_safe_globals()  # the context takes those off again that were there, too
    added = torch.serialization.safe_globals([entry for entry in allowed if entry not in listed])
    with added, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of newer pickles, which can be read
        return torch.load(path, map_location='cpu', weights_only=True)


def config_difference(config: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return which entry of `DECIDING` of a config differs from that of the expected one; '' if none does."""
    for key in DECIDING:
        got, right = (settings(setting_at(cfg, key)) for cfg in (config, expected))
        if got != right:
            return f'{key}{first_difference(got, right)}'[:MAX_TEXT]
    return ''


def built_by_class(model_class: type, config: Any) -> nn.Module | None:
    """Return a model in evaluation mode that its class builds from the config, without weights.

    mmcv's registries do the same: they pass on the entries of `model`, and the `test_cfg` of the config. None
    if the model is of another class than the config's, or needs a file that is not there, such as the initial
    anchors of Sparse4D, which every checkpoint has.
    """
    arguments = copy.deepcopy(dict(config.model))
    if arguments.pop('type', None) != model_class.__name__:
        return None
    arguments.pop('pretrained', None)
    arguments.setdefault('train_cfg', None)
    arguments.setdefault('test_cfg', copy.deepcopy(config.get('test_cfg')))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
        try:
            backbone = arguments.get('backbone') or arguments.get('img_backbone')
            model = built_unpretrained(lambda: model_class(**arguments), backbone)
        except FileNotFoundError:
            return None
    model.eval()  # by itself, since the `train` of some detectors returns None
    return model


def model_difference(
    loaded: Mapping[str, tuple[str, dict[str, Any]]], fresh: Mapping[str, tuple[str, dict[str, Any]]]
) -> str:
    """Return which module of a model has another class or other settings than a fresh one; '' if none has.

    Both are results of `module_settings`. Modules and attributes that the fresh model lacks, which families
    add to a model, are left out.
    """
    for name, (class_name, expected) in fresh.items():
        path = name or class_name.rpartition('.')[2]
        loaded_class, got = loaded.get(name, ('missing', {}))
        if loaded_class != class_name:
            return f'{path} is {loaded_class}, expected {class_name}'[:MAX_TEXT]
        got = {key: value for key, value in got.items() if key in expected}
        if got != expected:
            return f'{path}{first_difference(got, expected)}'[:MAX_TEXT]
    return ''


def first_difference(got: Any, expected: Any) -> str:
    """Return the path to the first place in which two results of `settings` differ, and both values.

    It is one text, such as '.test_cfg.nms is 0.5, expected 0.6'. What one of both lacks, or is no setting
    there, is called missing, or nothing. The two have to differ.
    """
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in [*expected, *got]:
            if got.get(key, ...) != expected.get(key, ...):
                return f'.{key}{first_difference(got.get(key, ...), expected.get(key, ...))}'
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        for index, (item, expected_item) in enumerate(zip(got, expected, strict=True)):
            if item != expected_item:
                return f'.{index}{first_difference(item, expected_item)}'
    got_text = 'missing' if got is ... else f'{got!s:.80}'
    expected_text = 'nothing' if expected is ... else f'{expected!s:.80}'
    return f' is {got_text}, expected {expected_text}'


def loaded_tensors(fresh: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights that a fresh model has of a file, by PyTorch alone, and the file's kernels.

    `fresh` gets these weights, and loses the hooks that would be called after loading. Its layers load them,
    which may rename or convert what older versions wrote, or add what these lacked, as a BatchNorm its
    `num_batches_tracked`; names are those of the model. Tensors of another shape than the model's are left
    out. Kernels of five axes are those of the file, by its names: spconv 1 and 2 have them in other orders.
    """
    built = fresh.state_dict()
    kernels = {key: tensor for key, tensor in tensors.items() if tensor.ndim == KERNEL_AXES}
    fitting = {
        key: tensor
        for key, tensor in tensors.items()
        if key not in kernels and (key not in built or built[key].shape == tensor.shape)
    }
    for part in fresh.modules():  # as mmcv's loader does, which calls neither these hooks nor overrides
        part._load_state_dict_post_hooks.clear()
    missing = nn.Module.load_state_dict(fresh, fitting, strict=False).missing_keys
    return {key: tensor for key, tensor in fresh.state_dict().items() if key not in missing} | kernels


def under_names_of(
    weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a file of a sparse backbone by the names of a model.

    In such a file the backbone may be below another name than in the model. The two prefixes are those by
    which most kernels have a name in common; tensors below other names of the file are left out. A file of
    which the model has a name, or none of whose kernels fits, is returned as it is.
    """
    if not tensors.keys().isdisjoint(weights):
        return tensors
    prefixes: dict[str, list[str]] = {}
    for name in (name for name, weight in weights.items() if weight.ndim == KERNEL_AXES):
        for prefix, tail in _splits(name):
            prefixes.setdefault(tail, []).append(prefix)
    pairs = collections.Counter(
        (in_file, in_model)
        for key, tensor in tensors.items()
        if tensor.ndim == KERNEL_AXES
        for in_file, tail in _splits(key)
        for in_model in prefixes.get(tail, ())
    )
    for (in_file, in_model), _ in pairs.most_common(1):
        return {
            in_model + key.removeprefix(in_file): tensor
            for key, tensor in tensors.items()
            if key.startswith(in_file)
        }
    return tensors


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a name with dots before and behind each dot, and all of it behind nothing."""
    parts = name.split('.')
    for count in range(len(parts)):
        yield ''.join(f'{part}.' for part in parts[:count]), '.'.join(parts[count:])


def weights_difference(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """Return which weights of a model differ from those of its file with the same names; '' if none does.

    `weights` are those of the model by their names, `expected` the tensors of the file by the same names.
    Names that one of both lacks are not compared, but if they have none in common, that is the difference.
    Tensors of the file are converted to the dtype of the model's first; values have to be equal, and NaN
    equals nothing.

    Kernels of five axes may have them in another order, one of `KERNEL_ORDERS`, the same for all that are not
    as in the file. Those of a single place may have any shape: spconv multiplies by their memory.
    """
    orders, differing = KERNEL_ORDERS, []
    shared = [key for key in expected if key in weights]
    if expected and not shared:
        return f'none of the names of the file is one of the model, such as {next(iter(expected))}'
    for key in shared:
        weight = weights[key].cpu()
        tensor = expected[key].to(weight.dtype)
        if torch.equal(weight, tensor):
            continue
        fitting = ()
        if weight.ndim == tensor.ndim == KERNEL_AXES:
            fitting = tuple(order for order in orders if torch.equal(weight, tensor.permute(order)))
            is_single_place = sum(size == 1 for size in tensor.shape) >= KERNEL_AXES - 2
            if is_single_place and torch.equal(weight.flatten(), tensor.flatten()):
                continue
        orders = fitting or orders
        if not fitting:
            differing.append(key)
    count = f' and {len(differing) - 1} more' if len(differing) > 1 else ''
    return f'{differing[0]}{count} not as in the file' if differing else ''
