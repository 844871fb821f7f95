"""Safe reading of checkpoints, and loading of models in which every key has to fit."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.compat import numpy_checkpoint_globals
from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.core.errors import CheckpointError, check_distinct
from mmdeploy_ext.core.files import described_kind
from mmdeploy_ext.weights.convert import mmdet3_names, rtdetr_names, solo_names

MAX_KEYS = 10
"""Largest number of keys that a message names."""
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that the tensors of a file may have for float weights of a model."""


class IgnoredObject:
    """Replaces an object of mmengine that no inference needs; it keeps no state.

    Measured with mmengine 0.10.7: of all that its Runner saves only `message_hub` names code. A
    `HistoryBuffer` (the curve of a logged scalar) has statistics, which are pickled as
    `getattr(HistoryBuffer, 'mean')`. Both names are replaced by objects that keep nothing: the curves are
    lost, and no code in the file is called.
    """

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


def ignored_getattr(*_: object) -> None:
    """Replace `getattr` of a pickle and return None."""


MMENGINE_GLOBALS = (
    (IgnoredObject, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (IgnoredObject, 'mmengine.logging.message_hub.MessageHub'),
    (ignored_getattr, 'builtins.getattr'),
)
"""Entries for `torch.serialization.safe_globals`: replacement and replaced name.

Source: mmengine 0.10.7, `HistoryBuffer.__getstate__`, and `MessageHub.load_state_dict`, which says that files
of older versions hold the `MessageHub` itself."""


def with_class_names(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` with the names of classes as `CLASSES`, as in mmdet 2; mmdet 3 has `dataset_meta`.

    Without a list or tuple of names there, or with an empty one, the new dict is a copy of `meta`.

    Source: mmdet 3.3.0, `init_detector`: `dataset_meta` goes before `CLASSES`; its keys may be capitals.
    """
    dataset = meta.get('dataset_meta')
    entries = dataset.items() if isinstance(dataset, dict) else ()
    classes = {str(key).lower(): value for key, value in entries}.get('classes')
    return {**meta, 'CLASSES': classes} if isinstance(classes, list | tuple) and classes else dict(meta)


def conversion_advice(path: str, stage: str, keys: Collection[Any] = ()) -> str:
    """Return the message for an unconverted checkpoint of a repository that this project converts; else ''.

    Args:
        path: path of the file.
        stage: how far the file was read: 'unreadable' (PyTorch failed), 'content' (a dict without a state
            dict) or 'tensors' (a state dict).
        keys: empty if it is unreadable, the keys of the dict, or the names of the tensors.

    Returns:
        A whole message with the path, and the command that converts the file, or what to take instead of one
        of PaddleDetection; of 'content' the end of a message, with the command.
    """
    messages = (names.advice(path, stage, keys) for names in (mmdet3_names, rtdetr_names, solo_names))
    return next(filter(None, messages), '')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: path of the file.
        state_dict: tensors by their names without the `module.` that wrappers add.
        meta: `meta` of a checkpoint of mmcv or mmengine, with `CLASSES` if it has names of classes; empty for
            a bare state dict.
    """

    path: str
    state_dict: dict[str, Tensor]
    meta: dict[str, Any]


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let the message of each CheckpointError in the block begin with the path of the file, once."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        named = text.startswith((f'{path}:', f'{Path(path)}:'))
        raise CheckpointError(text if named else f'{path}: {text}') from error


def read_content(path: str | Path) -> Any:
    """Return what `torch.save` wrote into the file at `path`, on the CPU, without running code of the file.

    CheckpointError: it is missing, a folder, cannot be read, is no checkpoint, is damaged, or would run code.
    """
    path = str(path)
    if Path(path).is_dir():
        raise CheckpointError(f'{path}: is a folder; give the file of the checkpoint in it')
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: no such checkpoint file')
    try:
        # the context takes its entries off torch's list when it ends, also those that were there before
        listed = torch.serialization.get_safe_globals()
        needed = (*numpy_checkpoint_globals(), *MMENGINE_GLOBALS)
        allowed = [entry for entry in needed if entry not in listed]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # unreadable files raise errors below; readable newer pickles need no warning
            warnings.filterwarnings('ignore', message='Detected pickle protocol')
            warnings.filterwarnings('ignore', message='.*looks like a TorchScript archive')
            warnings.filterwarnings('ignore', message='TypedStorage is deprecated')  # torch's own, quantised
            return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror or error})') from error
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles may raise anything: struct.error, AssertionError
        code = re.search(r'GLOBAL ([\w.]+)', str(error))
        if code and 'nsupported' in str(error):
            message = (
                f'{path}: holds {code.group(1)}, which would run code on loading; expected tensors and '
                f'plain values. If you trust its source, load it with your own torch and save '
                f"{{'state_dict': ...}} again"
            )
        else:
            kind = described_kind(path, 'PyTorch')
            message = conversion_advice(path, 'unreadable') or (
                f'{path}: is not a PyTorch checkpoint: it {kind}'
                if kind
                else f'{path}: is not a PyTorch checkpoint, or is truncated or damaged '
                f'({type(error).__name__}); compare its size and hash with the source'
            )
        raise CheckpointError(message) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of mmcv or mmengine (`state_dict`, `meta`) or a bare state dict; no code is run.

    If mmengine averaged the weights, `state_dict` holds the average and `ema_state_dict` the trained weights:
    its hook swaps them on saving (mmengine 0.10.7, `EMAHook.before_save_checkpoint`), and its tools load the
    first.

    Raises:
        CheckpointError: the file at `path` is missing, truncated, not a checkpoint, or would run code; it has
            no tensor, or `plain_tensors` refuses one.
    """
    path = str(path)
    content = read_content(path)
    state_dict = content.get('state_dict', content) if isinstance(content, dict) else None
    values = state_dict.values() if isinstance(state_dict, dict) else ()
    if not any(isinstance(value, Tensor) for value in values):
        keys = hint = ''
        if isinstance(content, dict):
            keys = f' with keys {sorted(map(str, content))[:MAX_KEYS]}'
            hint = conversion_advice(path, 'content', content)
        raise CheckpointError(
            f'{path}: got a {type(content).__name__}{keys}, expected a state dict or '
            f"{{'state_dict': ...}} of tensors{hint}"
        )
    with naming(path):
        weights = plain_tensors(state_dict)
    meta = content.get('meta') if 'state_dict' in content else None
    return Checkpoint(path, weights, with_class_names(meta) if isinstance(meta, dict) else {})


def plain_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict by their names without the `module.` that wrappers add.

    It is taken off the beginning of a name once, also if it is there twice. `content` is key -> value; values
    that are no tensors are left out.

    CheckpointError: two keys get the same name, or a tensor cannot be a weight, since it is quantised, sparse
    or on the device `meta`, without numbers; the caller names the file.
    """
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    names = {key: str(key).removeprefix('module.') for key in tensors}
    check_distinct(names.items())
    unusable = []
    for key, tensor in tensors.items():
        if tensor.is_meta:
            unusable.append(f'{key}: without numbers (device meta)')
        elif tensor.is_quantized:
            unusable.append(f'{key}: quantised ({_torch_name(tensor.dtype)})')
        elif tensor.layout != torch.strided:
            unusable.append(f'{key}: sparse ({_torch_name(tensor.layout)})')
    if unusable:
        raise CheckpointError(
            f'tensors that are not weights of a layer: {listed(unusable)}; expected dense tensors with their '
            f'numbers. Save the state dict of the float model, loaded whole'
        )
    return {name: tensors[key] for key, name in names.items()}


def _torch_name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix('torch.')


def check_types(path: str | Path, tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for tensors of none of `FLOAT_DTYPES` although those of the model are float.

    `tensors` and `model` are name -> tensor of the file at `path` and of the model. Names that the model
    lacks are skipped; integers of the model (counters) accept any type.
    """
    codes = [
        f'{key}: {_torch_name(tensor.dtype)} in the file, {_torch_name(model[key].dtype)} in the model'
        for key, tensor in tensors.items()
        if key in model and model[key].is_floating_point() and tensor.dtype not in FLOAT_DTYPES
    ]
    if codes:
        raise CheckpointError(
            f'{path}: types differ for {listed(codes)}. Codes of a quantised or packed model are not '
            f'weights: take the float checkpoint that it was made of'
        )


def listed(keys: Sequence[str]) -> str:
    """Return the number of keys and the first ten as text, such as '2 (a, b)' or '12 (a, ... and 2 more)'."""
    rest = f' ... and {len(keys) - MAX_KEYS} more' if len(keys) > MAX_KEYS else ''
    return f'{len(keys)} ({", ".join(keys[:MAX_KEYS])}{rest})'


def check_finite(
    path: str | Path, tensors: Mapping[str, Tensor], model: Mapping[str, Tensor] | None = None
) -> None:
    """Raise CheckpointError for NaN and infinite weights, with which every output would be meaningless.

    Args:
        path: path of the file, for the message.
        tensors: name -> tensor of the file; integers are skipped.
        model: name -> tensor of the model as it was built. A tensor of the file is first cast to the type of
            the model's, as loading does, and is skipped if the model's is not finite itself (a mask). With
            None, and for names that the model lacks, tensors are checked as they are.
    """
    broken = []
    for key, tensor in tensors.items():
        built = (model or {}).get(key)
        tensor = tensor if built is None else tensor.to(built.dtype)
        if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
            continue
        if built is not None and not bool(built.isfinite().all()):
            continue
        counts = ((int(tensor.isnan().sum()), 'NaN'), (int(tensor.isinf().sum()), 'infinite'))
        text = ' and '.join(f'{count} {kind}' for count, kind in counts if count)
        broken.append(f'{key}: {text} of {tensor.numel()} values')
    if broken:
        raise CheckpointError(
            f'{path}: weights that are not finite: {listed(broken)}. The training diverged or the file is '
            f'damaged: take an earlier checkpoint, or copy it again'
        )


def load_strict(model: torch.nn.Module, checkpoint: Checkpoint, ignored_prefixes: Sequence[str] = ()) -> None:
    """Load the weights of `checkpoint` into the model of a config, in place.

    Modules that know older names of their tensors, such as mmdet's `FCOSHead`, take these, too, and those of
    batch normalisation need no counter (`num_batches_tracked`), as PyTorch has it. Hooks that
    PyTorch calls after loading are left out, as mmcv's loader does, by which mmdet's tools load weights. So
    are the buffers of an EMA hook, `ema_backbone_conv1_weight` beside `backbone.conv1.weight`, of a model
    that has none: the hook exchanges both before a checkpoint is saved.

    Args:
        model: the built model.
        checkpoint: what `load_checkpoint` returned.
        ignored_prefixes: keys that begin with one of them, which inference does not use, may be missing or
            unexpected, of any type, and not finite; their shapes have to fit. Floating-point ones that are
            missing become NaN, which shows if inference uses them after all.

    Raises:
        CheckpointError: missing or unexpected keys, shapes or types that differ, or weights that are not
            finite; it names ten of them and the count. The model may then have some of the weights.
    """
    built, ignored = model.state_dict(), tuple(ignored_prefixes)
    averages = {f'ema_{name.replace(".", "_")}' for name in built} - built.keys()
    weights = {key: tensor for key, tensor in checkpoint.state_dict.items() if key not in averages}
    renamed: dict[str, Tensor] = {}

    def check_renamed(module: torch.nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
        """Check the tensors that modules have given new names to, before they are copied."""
        tensors = {
            key: tensor
            for key, tensor in state_dict.items()
            if key in built and key not in weights and key not in renamed
        }
        renamed.update(tensors)
        used = {key: tensor for key, tensor in tensors.items() if not key.startswith(ignored)}
        check_types(checkpoint.path, used, built)
        check_finite(checkpoint.path, used, built)
        for key, tensor in tensors.items():
            if tensor.shape != built[key].shape:  # it is reported with the others
                del state_dict[key]

    fitting = {
        key: tensor for key, tensor in weights.items() if key not in built or built[key].shape == tensor.shape
    }
    used = {key: tensor for key, tensor in fitting.items() if key in built and not key.startswith(ignored)}
    check_types(checkpoint.path, used, built)
    check_finite(checkpoint.path, used, built)
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    hooks = [module.register_load_state_dict_pre_hook(check_renamed) for module in modules]
    post_hooks = [(module, {**module._load_state_dict_post_hooks}) for module in model.modules()]
    for module, _ in post_hooks:  # mmcv's loader calls none
        module._load_state_dict_post_hooks.clear()
    try:
        # nor does it call the `load_state_dict` of a class, which a user may have overridden for trainings
        result = torch.nn.Module.load_state_dict(model, fitting, strict=False)
    finally:
        for hook in hooks:
            hook.remove()
        for module, entries in post_hooks:
            module._load_state_dict_post_hooks.update(entries)
    for key in result.missing_keys:  # what inference does not use cannot be what a file was proven with
        if key.startswith(ignored) and built[key].is_floating_point():
            built[key].fill_(float('nan'))
    weights = {**weights, **renamed}
    both = weights.keys() & built.keys()  # `misfits` compares their shapes
    missing, unexpected = (
        [key for key in keys if not key.startswith(ignored) and key not in both]
        for keys in (result.missing_keys, result.unexpected_keys)
    )
    if problems := misfits(built, weights, missing, unexpected):
        raise CheckpointError(
            conversion_advice(checkpoint.path, 'tensors', weights)
            or f'{checkpoint.path}: does not fit the model of the config: {problems}. '
            f'{prefix_advice(missing, unexpected)}'
        )


def prefix_advice(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return what to do about names that do not fit: a training of several networks prefixes those of each.

    `missing` are the names that the model alone has, `unexpected` those of the file alone.
    """
    first = [key.removesuffix(name) for name in missing[:1] for key in unexpected if key.endswith(f'.{name}')]
    complete = [prefix for prefix in first if {*unexpected} >= {prefix + key for key in missing}]
    if not complete:
        return 'Use the config that this checkpoint was trained with'
    names = ' and of '.join(f'{prefix}*' for prefix in complete)
    return (
        f'The file has the tensors of {names}: save those of the network that is tested, without the '
        f'prefix, as {{"state_dict": ...}}'
    )


def misfits(
    model: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> str:
    """Return the differences of a file's tensors from a model's in one text; '' if there are none.

    Args:
        model: name -> tensor of the model.
        tensors: name -> tensor of the file; shapes of the names that both have are compared.
        missing: names that the model alone has, as the caller counts them; they are only listed.
        unexpected: names that the file alone has, likewise.
    """
    shapes = [
        f'{key}: {tuple(tensor.shape)} in the file, {tuple(model[key].shape)} in the model'
        for key, tensor in tensors.items()
        if key in model and model[key].shape != tensor.shape
    ]
    parts = {'shapes differ for': shapes, 'missing keys': missing, 'unexpected keys': unexpected}
    return '; '.join(f'{title} {listed(keys)}' for title, keys in parts.items() if keys)


DRAWING = (
    'uniform_', 'normal_', 'trunc_normal_', 'xavier_uniform_', 'xavier_normal_',
    'kaiming_uniform_', 'kaiming_normal_', 'orthogonal_', 'sparse_',
)  # fmt: skip
"""Functions of `torch.nn.init` that draw the values of a weight."""


@contextlib.contextmanager
def undrawn_weights() -> Iterator[None]:
    """Inside the block modules are built without drawing their weights by `torch.nn.init`: see `DRAWING`.

    These functions leave a weight as it is, of arbitrary values as a rule; constants, and what a module draws
    by other functions, are set. Drawing takes most of the time of building a module.
    """
    from torch.nn import init

    with patched(init, **dict.fromkeys(DRAWING, _undrawn)):
        yield


def _undrawn(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Return a tensor as it is, in place of a function of `torch.nn.init`."""
    return tensor
