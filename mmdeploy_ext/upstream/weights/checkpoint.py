"""Safe reading of checkpoints, and strict loading of models."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.base.cli import suppress_output
from mmdeploy_ext.base.config import check_checkpoint_file
from mmdeploy_ext.base.errors import CheckpointError, check_distinct, named, one_line
from mmdeploy_ext.base.files import described_kind
from mmdeploy_ext.base.plain_pickle import ALLOWED, PlainUnpickler
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.upstream.compat import numpy_checkpoint_globals
from mmdeploy_ext.upstream.compat.import_hook import patched
from mmdeploy_ext.upstream.weights.convert import mmdet3_names, rtdetr_names, solo_names

# A `pickle` for `torch.load` that runs no code: all names except tensors' become inert objects.


TENSORS = {
    ('torch._utils', '_rebuild_tensor'): torch._utils._rebuild_tensor,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
    ('torch', 'Size'): torch.Size,
}
"""Functions that build tensors, by module and name; torch itself maps storages and reads their bytes."""


class StandIn:
    """Stands for an object of a class that is not loaded, and keeps its state."""

    name = ''
    dump_patches = False  # torch asks classes of old files whether it may write a patch

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Unpickling mostly skips __init__."""
        instance = object.__new__(cls)
        instance.state = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take any arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """The result is unknown: another stand-in."""
        return StandIn()

    def _ignore(self, *args: Any) -> None:
        """Items of the dict, list or set that a class inherits from."""

    __setitem__ = append = extend = add = update = _ignore


class InertUnpickler(PlainUnpickler):
    """Loads plain values and tensors, and a stand-in for every other name."""

    allowed = ALLOWED | TENSORS

    def refused(self, path: str) -> type[StandIn]:
        return type('StandIn', (StandIn,), dict(name=path))


def _load(file: Any, **options: Any) -> Any:
    return InertUnpickler(file, **options).load()


INERT_PICKLE = SimpleNamespace(Unpickler=InertUnpickler, load=_load, __name__='inert_pickle')
"""Replaces the module `pickle` in `torch.load`."""


MAX_KEYS = 3
COPY_AGAIN = 'copy or download it again, and compare its hash with the source'
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of float weights in a file."""


class IgnoredObject:
    """Stands for an object of a class that PyTorch does not read; no code of the class is called."""

    def __init__(self, *_: object) -> None:
        """Take any arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class IgnoredMapping:
    """Stands for an object of a class derived from dict, such as mmcv's `ConfigDict`: its items are kept."""

    def __new__(cls, *_: object) -> collections.OrderedDict[Any, Any]:
        """A dict: PyTorch puts items into no other object."""
        return collections.OrderedDict()


MOST_CLASSES = 100


def with_class_names(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `meta` with class names as `CLASSES`, as in mmdet 2; mmdet 3 has `dataset_meta`.

    Source: mmdet 3.3.0, `init_detector`: `dataset_meta` goes before `CLASSES`; its keys may be capitals.
    """
    dataset = meta.get('dataset_meta')
    entries = dataset.items() if isinstance(dataset, dict) else ()
    classes = {str(key).lower(): value for key, value in entries}.get('classes')
    return {**meta, 'CLASSES': classes} if isinstance(classes, list | tuple) and classes else dict(meta)


def conversion_advice(path: str, keys: Collection[Any]) -> str:
    """Message for an unconverted checkpoint that this project converts, or ''."""
    messages = (names.advice(path, keys) for names in (rtdetr_names, solo_names))
    return next(filter(None, messages), '')


class PickledModelError(CheckpointError):
    """A file holds an object of the user's class, and no tensors beside it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        state_dict: tensors by names without the wrappers' `module.`.
        meta: of mmcv or mmengine, with `CLASSES` if known; {} for a bare state dict.
        versions: PyTorch's `_metadata` of the modules, by which they know older names; {}: the file has none.
    """

    path: str
    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)

    def renamed(self, model: torch.nn.Module, detector: str) -> Checkpoint:
        """Names of mmdet 3 as those of a model of mmdet 2.28, whose type is `detector`."""
        names = mmdet3_names.to_mmdet2_names(self.state_dict, model.state_dict(), detector)
        with named(self.path):
            check_distinct(names.items())
        tensors = {name: self.state_dict[key] for key, name in names.items()}
        return dataclasses.replace(self, state_dict=tensors)

    def without(self, prefixes: Sequence[str]) -> Checkpoint:
        """Drop keys that begin with `prefixes`; CheckpointError: a prefix of no key."""
        for prefix in prefixes:
            if not any(key.startswith(prefix) for key in self.state_dict):
                raise CheckpointError(f'{self.path}: --ignore-keys {prefix}: no key has this prefix')
        kept = {key: value for key, value in self.state_dict.items() if not key.startswith(tuple(prefixes))}
        return dataclasses.replace(self, state_dict=kept)


def read_content(path: str | Path) -> Any:
    """Read a file of `torch.save` on the CPU without running its code; CheckpointError: it cannot be read."""
    path = str(path)
    check_checkpoint_file(path)
    try:
        if path.endswith('.safetensors'):
            return read_safetensors(path)
        check_archive(path)
        return _load_tensors(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror or error})') from error
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles may raise anything: struct.error, AssertionError
        code = re.search(r'GLOBAL ([\w.]+)', str(error))
        kind = described_kind(path, 'PyTorch')
        if code and 'nsupported' in str(error):
            message = (
                f'{path}: holds {code.group(1)}, which would run code when loaded; do not load this file'
            )
        elif 'TorchScript' in str(error):
            message = (
                f'{path}: is a TorchScript archive, not a checkpoint; save its weights with '
                '`torch.save(torch.jit.load(FILE).state_dict(), OUT)`'
            )
        elif kind:
            message = f'{path}: is not a PyTorch checkpoint: it {kind}'
        else:
            message = (
                f'{path}: is not a PyTorch checkpoint, or is truncated or damaged '
                f'({type(error).__name__}); compare its size and hash with the source'
            )
        raise CheckpointError(message) from error


def check_archive(path: str | Path) -> None:
    """Raise CheckpointError if the content of a checkpoint does not have the CRC-32 that was stored with it.

    Files of PyTorch before 1.6, and of `set_crc32_options(False)`, have none.
    """
    with open(path, 'rb') as stream:
        if stream.read(4) != b'PK\x03\x04' or not zipfile.is_zipfile(stream):
            return
    try:
        with zipfile.ZipFile(path) as archive:
            has_sums = any(entry.CRC for entry in archive.infolist())
            entry = archive.testzip() if has_sums else None
    except OSError:
        raise
    except Exception as error:  # of a damaged header: BadZipFile, NotImplementedError, zlib.error
        raise CheckpointError(f'{path}: is damaged ({error}); {COPY_AGAIN}') from error
    if entry is not None:
        raise CheckpointError(f'{path}: is damaged: {entry} does not have its CRC-32; {COPY_AGAIN}')


def _load_tensors(path: str) -> Any:
    """Load plain values and tensors; ignore objects of other classes, such as a script's arguments."""
    ignored: dict[str, type] = {}  # class of the file -> what stands for it
    while True:
        try:
            # the context takes its entries off torch's list when it ends, also entries that were there before
            listed = torch.serialization.get_safe_globals()
            needed = *numpy_checkpoint_globals(), *((cls, name) for name, cls in ignored.items())
            allowed = [entry for entry in needed if entry not in listed]
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                # unreadable files raise errors below; readable newer pickles need no warning
                warnings.filterwarnings('ignore', message='Detected pickle protocol')
                warnings.filterwarnings('ignore', message='.*looks like a TorchScript archive')
                warnings.filterwarnings('ignore', message='TypedStorage is deprecated')  # torch's own
                return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            if 'Unsupported operand' in str(error):  # of pickle_protocol=4
                return _load_newer_pickle(path)
            name = re.search(r'Unsupported global: GLOBAL ([\w.]+)', str(error))
            mapping = re.search(r"Can only SETITEMS? .* got <class '([\w.]+)'>", str(error))
            if name and len(ignored) < MOST_CLASSES:
                full_name = name[1] if '.' in name[1] else f'builtins.{name[1]}'  # as PyTorch names it
                ignored[full_name] = _ignoring(full_name, IgnoredObject)
            elif mapping and ignored.get(mapping[1]):
                ignored[mapping[1]] = IgnoredMapping
            else:
                raise


def _load_newer_pickle(path: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about sources of classes that are not installed
        return torch.load(path, map_location='cpu', weights_only=False, pickle_module=INERT_PICKLE)


SAFETENSORS_DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file: a JSON header of names, types, shapes and offsets, then the numbers."""
    content = memoryview(bytearray(Path(path).read_bytes()))
    end_of_header = 8 + int.from_bytes(content[:8], 'little')
    header = parse_json(bytes(content[8:end_of_header]))
    header.pop('__metadata__', None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (end_of_header + offset for offset in entry['data_offsets'])
        dtype = SAFETENSORS_DTYPES[entry['dtype']]
        values = (
            torch.frombuffer(content[begin:end], dtype=dtype) if end > begin else torch.empty(0, dtype=dtype)
        )
        tensors[name] = values.reshape(entry['shape'])
    return tensors


def _ignoring(name: str, base: type) -> type:
    module, _, qualname = name.rpartition('.')
    return type(qualname, (base,), dict(__module__=module))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of mmcv or mmengine, a bare state dict, or `{'model': state_dict}` without averages.

    mmengine's averaged weights are in `state_dict`: its hook swaps them on saving (mmengine 0.10.7,
    `EMAHook.before_save_checkpoint`). CheckpointError: missing, damaged, unsafe, or without usable tensors.
    """
    path = str(path)
    content = read_content(path)
    state_dict = _state_dict(content) if isinstance(content, dict) else None
    values = state_dict.values() if isinstance(state_dict, dict) else ()
    if not any(isinstance(value, Tensor) for value in values):
        keys = advice = ''
        if isinstance(content, dict):
            keys = f' with keys {sorted(map(str, content))[:10]}'
            advice = conversion_advice(path, content)
        objects = [value for value in (content, state_dict, *values) if isinstance(value, IgnoredObject)]
        if objects and not advice:
            kind = type(objects[0])
            raise PickledModelError(
                f'{path}: holds an object of {kind.__module__}.{kind.__name__}, which is not loaded, '
                'instead of weights; load it where its classes are installed, and save '
                f"{{'state_dict': model.state_dict()}}"
            )
        raise CheckpointError(
            advice
            or f'{path}: got a {type(content).__name__}{keys}, expected a state dict or '
            f"{{'state_dict': ...}} of tensors"
        )
    with named(path):
        weights = plain_tensors(state_dict)
    meta = content.get('meta') if state_dict is not content else None
    meta = with_class_names(meta) if isinstance(meta, dict) else {}
    return Checkpoint(path, weights, meta, _versions(state_dict))


def _versions(state_dict: Any) -> dict[str, Any]:
    versions = getattr(state_dict, '_metadata', None)
    if not isinstance(versions, dict):
        return {}
    return {name.removeprefix('module.'): version for name, version in versions.items()}


def _state_dict(content: dict[Any, Any]) -> Any:
    model = content.get('model')
    if 'state_dict' in content or 'ema' in content or not isinstance(model, dict):
        return content.get('state_dict', content)
    return content if rtdetr_names.is_original(map(str, model)) else model


def plain_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by name without one leading `module.`; CheckpointError: a repeated name."""
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    names = {key: str(key).removeprefix('module.') for key in tensors}
    check_distinct(names.items())
    if empty := [name for key, name in names.items() if tensors[key].is_meta]:
        raise CheckpointError(
            f'tensors on the device "meta", which have no values: {listed(empty)}; save the model after its '
            f'weights are loaded'
        )
    return {
        name: tensors[key] if tensors[key].layout == torch.strided else tensors[key].to_dense()
        for key, name in names.items()
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def check_types(path: str | Path, tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless float weights of the model are of `FLOAT_DTYPES` in the file."""
    codes = [
        f'{key}: {_name(tensor.dtype)} in the file, {_name(model[key].dtype)} in the model'
        for key, tensor in tensors.items()
        if key in model and model[key].is_floating_point() and tensor.dtype not in FLOAT_DTYPES
    ]
    if codes:
        raise CheckpointError(
            f'{path}: types differ for {listed(codes)}. Codes of a quantised or packed model are not '
            f'weights: use the float checkpoint that it was made from'
        )


def listed(keys: Sequence[str]) -> str:
    """Number and first keys: '2 (a, b)' or '5 (a, b, c ... and 2 more)'."""
    rest = f' ... and {len(keys) - MAX_KEYS} more' if len(keys) > MAX_KEYS else ''
    return f'{len(keys)} ({", ".join(keys[:MAX_KEYS])}{rest})'


def check_finite(
    path: str | Path, tensors: Mapping[str, Tensor], model: Mapping[str, Tensor] | None = None
) -> None:
    """Raise CheckpointError for NaN and infinity, after the cast to the model's type.

    Tensors that are not finite in the model itself (masks) are skipped.
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
            f'damaged: use an earlier checkpoint, or copy it again'
        )


def load_strict(model: torch.nn.Module, checkpoint: Checkpoint, ignored_prefixes: Sequence[str] = ()) -> None:
    """Load weights in place; every key has to fit.

    Modules' older names (mmdet's `FCOSHead`) are taken; `num_batches_tracked` and buffers of an EMA hook may
    differ, as in mmcv's loader. Keys with `ignored_prefixes` may be missing (then NaN), unexpected or not
    finite. CheckpointError: keys, shapes or types differ, or values are not finite.
    """
    built, ignored = model.state_dict(), tuple(ignored_prefixes)
    averages = {f'ema_{name.replace(".", "_")}' for name in built} - built.keys()
    weights = {key: tensor for key, tensor in checkpoint.state_dict.items() if key not in averages}
    fitting: collections.OrderedDict[str, Tensor] = collections.OrderedDict(
        (key, tensor)
        for key, tensor in weights.items()
        if key not in built or built[key].shape == tensor.shape
    )
    if checkpoint.versions:
        fitting._metadata = checkpoint.versions  # type: ignore[attr-defined]
    used = {key: tensor for key, tensor in fitting.items() if key in built and not key.startswith(ignored)}
    check_types(checkpoint.path, used, built)
    check_finite(checkpoint.path, used, built)
    try:
        # as mmcv's loader, which calls no `load_state_dict` that a class overrides
        with suppress_output():  # mmcv logs each deformable convolution
            result = torch.nn.Module.load_state_dict(model, fitting, strict=False)
    except RuntimeError as error:  # another shape under an older name
        raise CheckpointError(f'{checkpoint.path}: {one_line(error)}') from error
    for key in result.missing_keys:  # NaN shows if inference uses the key after all
        if key.startswith(ignored) and built[key].is_floating_point():
            built[key].fill_(float('nan'))
    needed = [key for key in result.missing_keys if not key.endswith('num_batches_tracked')]
    # `misfits` compares the shapes of these; others are missing if a module took their name for an older one
    both = (weights.keys() & built.keys()) - fitting.keys()
    missing, unexpected = (
        [key for key in keys if not key.startswith(ignored) and key not in both]
        for keys in (needed, result.unexpected_keys)
    )
    if problems := misfits(built, weights, missing, unexpected):
        raise CheckpointError(
            conversion_advice(checkpoint.path, weights)
            or f'{checkpoint.path}: does not fit the model of the config: {problems}. '
            f'Use the config that this checkpoint was trained with{ignoring_advice(problems, unexpected)}'
        )


def ignoring_advice(problems: str, unexpected: Sequence[str]) -> str:
    """How to leave out the unexpected keys, if nothing else is wrong; else ''."""
    columns = zip(*(key.split('.')[:-1] for key in unexpected))  # noqa: B905 of the shortest
    common = itertools.takewhile(lambda names: len(set(names)) == 1, columns)
    prefix = '.'.join(names[0] for names in common)
    if not prefix or not problems.startswith('unexpected'):
        return ''
    return f', or ignore these weights with --ignore-keys {prefix}.'


def misfits(
    model: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> str:
    """Differences of a file's tensors from a model's as text, or ''."""
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
"""Functions of `torch.nn.init` that draw values."""


@contextlib.contextmanager
def undrawn_weights() -> Iterator[None]:
    """Build modules inside the block without `DRAWING`, which takes most of the time."""
    from torch.nn import init

    with patched(init, **dict.fromkeys(DRAWING, _undrawn)):
        yield


def _undrawn(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor
