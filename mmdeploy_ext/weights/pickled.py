"""Weights out of a pickled model, without running any of its code.

NVIDIA's PTQ scripts save whole modules, `torch.save(model)`. Such a file names classes and functions to call.
Here every name but the few that build tensors stands for an inert object that keeps what it is given: nothing
named in the file is imported, and nothing is called.
"""

from __future__ import annotations

import collections
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import torch

from mmdeploy_ext.core.errors import CheckpointError

# What builds tensors and ordered dicts; torch itself maps storages and reads their bytes.
ALLOWED: dict[str, Callable] = {
    'collections.OrderedDict': collections.OrderedDict,
    'torch._utils._rebuild_tensor': torch._utils._rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
    'torch.Size': torch.Size,
    'builtins.set': set,
    '__builtin__.set': set,
}
CONVERT = (
    'In the environment that made it, load it and `torch.save({"state_dict": model.state_dict()}, FILE)`, '
    'which keeps the calibrated ranges too'
)
MOST_NESTED = 100


class StandIn:
    """An object of a class that is not loaded: it takes whatever a pickle does to it, and does nothing."""

    name = ''
    dump_patches = False  # torch asks classes of old files whether it may write a patch

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Return an instance for any arguments; unpickling mostly skips __init__."""
        instance = object.__new__(cls)
        instance.state = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take any arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """Return another one: results of calls are unknown."""
        return StandIn()

    def _ignore(self, *args: Any) -> None:
        """Items of dicts, lists and sets that a class inherits from."""

    __setitem__ = append = extend = add = update = _ignore


class InertUnpickler(pickle.Unpickler):
    """Finds the allowed functions, and a stand-in for every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name of the file stands for."""
        full = f'{module}.{name}'
        allowed = ALLOWED.get(full)
        if isinstance(allowed, FunctionType):
            # a pickle can set attributes of what it names: not those of torch's own function
            return lambda *args: allowed(*args)
        return allowed or type('StandIn', (StandIn,), dict(name=full))


def _load(file: Any, **options: Any) -> Any:
    return InertUnpickler(file, **options).load()


def _loads(content: bytes, **options: Any) -> Any:
    raise pickle.UnpicklingError('nested pickles are not read')


# What torch.load takes for the module `pickle`.
INERT_PICKLE = SimpleNamespace(Unpickler=InertUnpickler, load=_load, loads=_loads, __name__='inert_pickle')


def read_pickled(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a pickled module, or of a checkpoint with other objects in it.

    That is of `torch.save(model)`, of a wrapper with the model in `.module`, or of a dict with `state_dict`
    (or `model`) beside objects; names are without the `module.` of wrappers; quantisers' `_amax` are among
    the buffers.

    Raises:
        CheckpointError: there is no module and no state dict in it, or it cannot be read this way; the
            message says how to convert it.
    """
    if not _is_pickle(path):
        raise CheckpointError(f'{path}: is a TorchScript archive, or none that torch.save wrote. {CONVERT}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # on sources of classes that are not here
            content = torch.load(path, map_location='cpu', weights_only=False, pickle_module=INERT_PICKLE)
        weights = dict(_weights(content))
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror or error})') from error
    except Exception as error:  # what a hostile or exotic pickle does to stand-ins has no common class
        raise CheckpointError(
            f'{path}: holds a pickled model that cannot be read without running its code '
            f'({type(error).__name__}: {error}). {CONVERT}'
        ) from error
    if not weights:
        raise CheckpointError(f'{path}: holds objects but no weights that could be found. {CONVERT}')
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _is_pickle(path: str | Path) -> bool:
    """Whether torch.save wrote a file: a zip archive that is no TorchScript (those run code), or a pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith('/constants.pkl') for name in archive.namelist())
    with open(path, 'rb') as file:
        return file.read(1) == b'\x80'


def _weights(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module, a state dict, or a dict that holds one of them."""
    if isinstance(content, StandIn):
        yield from _module_weights(content, '', 0)
    elif isinstance(content, dict):
        within = [content.get(name) for name in ('state_dict', 'model')]
        if inner := [one for one in within if isinstance(one, dict | StandIn)]:
            yield from _weights(inner[0])
        else:
            yield from ((str(key), one) for key, one in content.items() if isinstance(one, torch.Tensor))


def _module_weights(module: StandIn, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and buffers of a pickled torch.nn.Module, as its state_dict() would have them."""
    if depth > MOST_NESTED:
        raise ValueError(f'modules are nested more than {MOST_NESTED} deep')
    state = module.state if isinstance(module.state, dict) else {}
    hidden = state.get('_non_persistent_buffers_set', ())
    hidden = hidden if isinstance(hidden, set) else set()
    for table, left_out in (('_parameters', set()), ('_buffers', hidden)):
        for name, value in _items(state, table):
            if isinstance(value, torch.Tensor) and name not in left_out:
                yield f'{prefix}{name}', value.detach()
    for name, child in _items(state, '_modules'):
        if isinstance(child, StandIn):
            yield from _module_weights(child, f'{prefix}{name}.', depth + 1)


def _items(state: dict, name: str) -> list[tuple[Any, Any]]:
    table = state.get(name)
    return list(table.items()) if isinstance(table, dict) else []
