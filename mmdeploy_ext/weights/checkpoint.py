"""Strict and safe loading of checkpoints."""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.compat import numpy_checkpoint_globals
from mmdeploy_ext.core.distinct import check_distinct
from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.convert import mmdet3_names, rtdetr_names, solo_names, sources  # noqa: F401  (register)

SHOWN_KEYS = 10
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OF_BROKEN_PICKLES = (AttributeError, TypeError, ImportError)


class LeftOut:
    """In place of an object of mmengine that no inference needs; it keeps no state.

    Measured with mmengine 0.10.7: of all that its Runner saves only `message_hub` names code. A
    `HistoryBuffer` (the curve of a logged scalar) carries its statistics, which are pickled as
    `getattr(HistoryBuffer, 'mean')`. Here both names stand for objects of ours that keep nothing: the curves
    are lost, and nothing that is named is called.
    """

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


def no_attribute(*_: object) -> None:
    """Stand for `getattr` of a pickle: gives nothing, whatever it is asked for."""


MMENGINE_GLOBALS = (
    (LeftOut, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (LeftOut, 'mmengine.logging.message_hub.MessageHub'),
    (no_attribute, 'builtins.getattr'),
)
"""Entries for `torch.serialization.safe_globals`: the names that stand for what is left out.

Source: mmengine 0.10.7, `HistoryBuffer.__getstate__`, and `MessageHub.load_state_dict`, which says that files
of older versions hold the whole `MessageHub`."""


def with_class_names(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` with the names of classes as mmdet 2 keeps them, `CLASSES`; mmdet 3 has `dataset_meta`.

    Source: mmdet 3.3.0, `init_detector`: `dataset_meta` goes before `CLASSES`, its keys in any case.
    """
    dataset = meta.get('dataset_meta')
    named = {str(key).lower(): value for key, value in dataset.items()} if isinstance(dataset, dict) else {}
    return {**meta, 'CLASSES': named['classes']} if named.get('classes') else dict(meta)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The weights of a file, by name without the `module.` that wrappers add, and what was saved beside them.

    `meta` is that of a checkpoint of mmcv or mmengine, with `CLASSES`; empty for a bare state dict.
    """

    path: str
    state_dict: dict[str, Tensor]
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


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let each CheckpointError of the block begin with the name of the file."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        named = text.startswith((f'{path}:', f'{Path(path)}:'))
        raise CheckpointError(text if named else f'{path}: {text}') from error


def read_content(path: str | Path) -> Any:
    """Read what a checkpoint file holds with `weights_only=True`; for errors see `load_checkpoint`."""
    path = str(path)
    if Path(path).is_dir():
        raise CheckpointError(f'{path}: is a folder; give the file of the checkpoint in it')
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: no such checkpoint file')
    try:
        allowed = [*numpy_checkpoint_globals(), *MMENGINE_GLOBALS]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # what cannot be read is an error below; a newer pickle that can be read needs no warning
            warnings.filterwarnings('ignore', message='Detected pickle protocol')
            warnings.filterwarnings('ignore', message='.*looks like a TorchScript archive')
            warnings.filterwarnings('ignore', message='TypedStorage is deprecated')  # torch's own, quantised
            return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror or error})') from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, *OF_BROKEN_PICKLES) as error:
        raise _refusal(path, error) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of mmcv or mmengine (`state_dict`, `meta`) or a bare state dict; no code is run.

    Where mmengine averaged the weights, `state_dict` holds the average and `ema_state_dict` what was trained:
    its hook swaps them on saving (mmengine 0.10.7, `EMAHook.before_save_checkpoint`), and its tools load the
    first.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or one that would run code; a key with and
            without `module.`, a tensor without numbers of its own.
    """
    path = str(path)
    content = read_content(path)
    state_dict = content.get('state_dict', content) if isinstance(content, dict) else None
    values = state_dict.values() if isinstance(state_dict, dict) else ()
    if not any(isinstance(value, Tensor) for value in values):
        keys = hint = ''
        if isinstance(content, dict):
            keys = f' with keys {sorted(map(str, content))[:SHOWN_KEYS]}'
            hint = sources.advice(path, 'content', content)
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

    CheckpointError where two keys become one, or a tensor is none that a layer computes with; no file named.
    """
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    names = {key: str(key).removeprefix('module.') for key in tensors}
    check_distinct(names.items())
    odd = [f'{key}: {kind}' for key, value in tensors.items() if (kind := _odd_kind(value))]
    if odd:
        raise CheckpointError(
            f'tensors that are not weights of a layer: {listed(odd)}; expected dense tensors with their '
            f'numbers. Save the state dict of the float model, loaded whole'
        )
    return {name: tensors[key] for key, name in names.items()}


def _odd_kind(value: Tensor) -> str:
    if value.is_meta:
        return 'without numbers (device meta)'
    if value.is_quantized:
        return f'quantised ({_type_name(value)})'
    return '' if value.layout == torch.strided else f'sparse ({str(value.layout).removeprefix("torch.")})'


def _type_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix('torch.')


def check_types(path: str | Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse integers, booleans and other codes where the model has float weights.

    Tensors that the model's `own` lack are passed over, its integers (counters) take any.
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
    path: str | Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None
) -> None:
    """Refuse NaN and infinite weights, which would make every output of a graph meaningless.

    With the model's `own` tensors, as it was built, the file's are cast to their types, as loading does.
    Where a tensor of the model is not finite by itself, that of the file need not be either.
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
    """Put the weights into the model, as the config builds it; every key has to be accounted for.

    Keys with one of the `ignored_prefixes`, which inference does not use, may be missing or unexpected.

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
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], missing: Sequence[str], unexpected: Sequence[str]
) -> str:
    """Return in one text what does not fit: shapes of the model's own tensors and those given that differ.

    And the keys that the caller found: those that the file lacks, and those that the model lacks.
    """
    shapes = [
        f'{key}: {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model'
        for key, value in given.items()
        if key in own and own[key].shape != value.shape
    ]
    parts = {'shapes differ for': shapes, 'missing keys': missing, 'unexpected keys': unexpected}
    return '; '.join(f'{title} {listed(keys)}' for title, keys in parts.items() if keys)
