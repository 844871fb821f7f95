"""Strict and safe loading of checkpoints."""

from __future__ import annotations

import dataclasses
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.core.distinct import check_distinct
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.stack.compat import numpy_checkpoint_globals
from mmdeploy_ext.weights.convert import mmdet3_names, rtdetr_names, solo_names, sources  # noqa: F401  (register)
from mmdeploy_ext.weights.mmengine_file import mmengine_globals, with_class_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHOWN_KEYS = 10
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights and what was saved beside them.

    Attributes:
        path: the file.
        state_dict: name -> tensor, without the `module.` that wrappers add.
        meta: `meta` of a checkpoint of mmcv or mmengine, with `CLASSES`; empty for a bare state dict.
    """

    path: str
    state_dict: dict[str, torch.Tensor]
    meta: dict[str, Any]


def _refusal(path: str, error: Exception) -> CheckpointError:
    text = str(error)
    blocked = re.search(r'GLOBAL ([\w.]+)', text)
    if blocked and 'nsupported' in text:
        return CheckpointError(
            f'{path}: holds {blocked.group(1)}, which would run code on loading; expected tensors and '
            f'plain values. If you trust its source, load it with your own torch and save '
            f"{{'state_dict': ...}} again"
        )
    if advice := sources.advice(path, 'unreadable'):
        return CheckpointError(advice)
    return CheckpointError(
        f'{path}: is not a PyTorch checkpoint, or is truncated or damaged '
        f'({type(error).__name__}); compare its size and hash with the source'
    )


def read_content(path: str | Path) -> Any:
    """Read what a checkpoint file holds with `weights_only=True`.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or one that would run code.
    """
    path = str(path)
    if Path(path).is_dir():
        raise CheckpointError(f'{path}: is a folder; give the file of the checkpoint in it')
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: no such checkpoint file')
    try:
        allowed = [*numpy_checkpoint_globals(), *mmengine_globals()]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # what cannot be read is an error below; a newer pickle that can be read needs no warning
            warnings.filterwarnings('ignore', message='Detected pickle protocol')
            warnings.filterwarnings('ignore', message='.*looks like a TorchScript archive')
            warnings.filterwarnings('ignore', message='TypedStorage is deprecated')  # torch's own, quantised
            return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror or error})') from error
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        TypeError,
        UnicodeDecodeError,
        ImportError,
    ) as error:
        raise _refusal(path, error) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint with `weights_only=True`.

    Args:
        path: a checkpoint of mmcv or mmengine (`state_dict`, `meta`) or a bare state dict. Where mmengine
            averaged the weights, `state_dict` holds the average and `ema_state_dict` what was trained: its
            hook swaps them on saving (mmengine 0.10.7, `EMAHook.before_save_checkpoint`), and its tools load
            the first.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or one that would run code; a key with and
            without `module.`, a tensor without numbers of its own.
    """
    path = str(path)
    content = read_content(path)
    state_dict = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not any(
        isinstance(value, torch.Tensor) for value in state_dict.values()
    ):
        kind = type(content).__name__
        keys = f' with keys {sorted(map(str, content))[:SHOWN_KEYS]}' if isinstance(content, dict) else ''
        hint = sources.advice(path, 'content', content) if isinstance(content, dict) else ''
        raise CheckpointError(
            f"{path}: got a {kind}{keys}, expected a state dict or {{'state_dict': ...}} of tensors{hint}"
        )
    try:
        weights = plain_tensors(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    meta = content.get('meta') if 'state_dict' in content else None
    return Checkpoint(
        path=path, state_dict=weights, meta=with_class_names(meta) if isinstance(meta, dict) else {}
    )


def plain_tensors(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict by their names without the `module.` that wrappers add.

    Raises:
        CheckpointError: two keys become one, or a tensor is none that a layer computes with; no file named.
    """
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    names = {key: str(key).removeprefix('module.') for key in tensors}
    check_distinct(names.items())
    odd = [f'{key}: {kind}' for key, value in tensors.items() if (kind := _odd_kind(value))]
    if odd:
        raise CheckpointError(
            f'tensors that are not weights of a layer: {listed(odd)}; expected dense tensors with their '
            f'numbers. Save the state dict of the float model, loaded whole'
        )
    return {name: tensors[key] for key, name in names.items()}


def _odd_kind(value: torch.Tensor) -> str:
    if value.is_meta:
        return 'without numbers (device meta)'
    if value.is_quantized:
        return f'quantised ({_type_name(value)})'
    return '' if value.layout == torch.strided else f'sparse ({str(value.layout).removeprefix("torch.")})'


def _type_name(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix('torch.')


def check_types(
    path: str | Path, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Refuse integers, booleans and other codes where the model has float weights.

    Args:
        path: of the checkpoint, for the message.
        tensors: name -> weight.
        own: the model's tensors; those that it lacks are passed over, its integers (counters) take any.

    Raises:
        CheckpointError: names the keys and both types.
    """
    other = [
        f'{key}: {_type_name(value)} in the file, {_type_name(own[key])} in the model'
        for key, value in tensors.items()
        if key in own and own[key].is_floating_point() and value.dtype not in FLOATS
    ]
    if other:
        raise CheckpointError(
            f'{path}: types differ for {listed(other)}. Codes of a quantised or packed model are not '
            f'weights: take the float checkpoint that it was made of'
        )


def listed(keys: Sequence[str]) -> str:
    """Return the number of keys and the first ten."""
    more = f' ... and {len(keys) - SHOWN_KEYS} more' if len(keys) > SHOWN_KEYS else ''
    return f'{len(keys)} ({", ".join(keys[:SHOWN_KEYS])}{more})'


def check_finite(
    path: str | Path, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse NaN and infinite weights, which would make every output of a graph meaningless.

    Args:
        path: of the checkpoint, for the message.
        tensors: name -> weight.
        own: the model's tensors as it was built; the file's are cast to their types, as loading does. Where
            a tensor of the model is not finite by itself, that of the file need not be either.

    Raises:
        CheckpointError: names the keys, how many values of each, and what they are.
    """
    broken = []
    for key, value in tensors.items():
        built = (own or {}).get(key)
        value = value if built is None else value.to(built.dtype)
        if not value.is_floating_point() or bool(value.isfinite().all()):
            continue
        if built is not None and not bool(built.isfinite().all()):
            continue
        nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
        counts = [f'{nan} NaN'] * bool(nan) + [f'{infinite} infinite'] * bool(infinite)
        broken.append(f'{key}: {" and ".join(counts)} of {value.numel()} values')
    if broken:
        raise CheckpointError(
            f'{path}: weights that are not finite: {listed(broken)}. The training diverged or the file is '
            f'damaged: take an earlier checkpoint, or copy it again'
        )


def load_strict(model: torch.nn.Module, checkpoint: Checkpoint, ignored_prefixes: Sequence[str] = ()) -> None:
    """Put the weights into the model; every key has to be accounted for.

    Args:
        model: the model as the config builds it.
        checkpoint: what `load_checkpoint` read.
        ignored_prefixes: keys that inference does not use may be missing or unexpected.

    Raises:
        CheckpointError: missing or unexpected keys, shapes or types that differ, or weights that are not
            finite; ten of them and the count.
    """
    own, given, ignored = model.state_dict(), checkpoint.state_dict, tuple(ignored_prefixes)
    fitting = {key: value for key, value in given.items() if key not in own or own[key].shape == value.shape}
    used = {key: value for key, value in fitting.items() if key in own and not key.startswith(ignored)}
    check_types(checkpoint.path, used, own)
    check_finite(checkpoint.path, used, own)
    result = model.load_state_dict(fitting, strict=False)
    missing, unexpected = (
        [key for key in keys if not key.startswith(ignored) and key not in given.keys() & own.keys()]
        for keys in (result.missing_keys, result.unexpected_keys)
    )
    if problems := misfits(own, given, missing, unexpected):
        if advice := sources.advice(checkpoint.path, 'tensors', given):
            raise CheckpointError(advice)
        raise CheckpointError(
            f'{checkpoint.path}: does not fit the model of the config: {problems}. '
            f'Use the config that this checkpoint was trained with'
        )


def misfits(
    own: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> str:
    """Return in one text what does not fit: shapes that differ, and the keys that the caller found.

    Args:
        own: the model's tensors.
        given: the file's, by the model's names.
        missing: keys that the file lacks.
        unexpected: keys that the model lacks.
    """
    shapes = [
        f'{key}: {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model'
        for key, value in given.items()
        if key in own and own[key].shape != value.shape
    ]
    parts = {'shapes differ for': shapes, 'missing keys': missing, 'unexpected keys': unexpected}
    return '; '.join(f'{title} {listed(keys)}' for title, keys in parts.items() if keys)
