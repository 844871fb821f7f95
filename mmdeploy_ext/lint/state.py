"""The state that a forward pass leaves behind in its module: attributes and buffers that it wrote."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.lint.nested import tensors_in
from mmdeploy_ext.lint.record import Recorder
from mmdeploy_ext.lint.sites import caller

MODULE_FIELDS = {'_buffers', '_parameters', '_modules', '_non_persistent_buffers_set', 'training'}
"""Attributes that every module has."""
HOOKS = ('_forward', '_backward')
"""Beginnings of the names of attributes of modules that hold hooks."""


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield 'module.attribute' and value of what a module holds beside its parameters and buffers."""
    for path, part in module.named_modules():
        for name, value in part.__dict__.items():
            if name not in MODULE_FIELDS:
                yield f'{path}.{name}'.lstrip('.'), value


def _versions(module: torch.nn.Module) -> dict[str, list[tuple[int, int]]]:
    """Return name of an attribute or buffer -> id and version counter of each tensor in it."""
    values = {name: value for name, value in _attributes(module) if not name.split('.')[-1].startswith(HOOKS)}
    for path, part in module.named_modules():  # `named_buffers` may give what has two names twice, or once
        values.update({f'{path}.{name}'.lstrip('.'): buffer for name, buffer in part._buffers.items()})
    return {
        name: [(id(tensor), tensor._version) for tensor in tensors_in(value)]
        for name, value in values.items()
    }


def held_tensors(module: torch.nn.Module) -> dict[int, str]:
    """Return id -> name of the tensors that a module and its submodules hold beside parameters and buffers.

    They are in attributes, also nested in lists, tuples and dicts; a name is 'submodule.attribute', the last
    one of a tensor with several. A parameter that a list holds, too, is among them.
    """
    return {id(tensor): name for name, value in _attributes(module) for tensor in tensors_in(value)}


@contextlib.contextmanager
def watch_attributes(module: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Add an event for each attribute or buffer of a module that is set or changed inside the block.

    Those of its submodules count, too, and parameters that are set; each setting is an event. The value has
    to hold tensors, or be a number that replaces another one (a counter of frames; a number that is set for
    the first time is no state, and a marked size is no number here).

    One target, `torch.nn.Module.__setattr__`, restored on exit; what is changed in other ways (an item of a
    list or dict) is found by comparing afterwards, and has no line.
    """
    before = _versions(module)
    paths = {id(part): path for path, part in module.named_modules()}
    original = torch.nn.Module.__setattr__
    set_names = set()

    def watched(self: torch.nn.Module, name: str, value: Any) -> None:
        has_tensor, old = next(tensors_in(value), None) is not None, self.__dict__.get(name)
        are_numbers = all(type(number) in (int, float, bool) for number in (old, value))
        is_new_number = name not in MODULE_FIELDS and are_numbers and old != value
        if id(self) in paths and (has_tensor or is_new_number):
            full_name = f'{paths[id(self)]}.{name}'.lstrip('.')
            if (site := caller()) is not None:
                set_names.add(full_name)
                recorder.add('state-written', f'attribute {full_name!r} is set', site)
        original(self, name, value)

    with patched(torch.nn.Module, __setattr__=watched):
        yield
    # operators that write in place are recorded by `watches.writes`
    in_place = [event.detail for event in recorder.events if event.rule == 'state-written']
    for name, tensors in _versions(module).items():
        is_recorded = name in set_names or any(repr(name) in detail for detail in in_place)
        if tensors and not is_recorded and tensors != before.get(name):
            recorder.add('state-written', f'attribute {name!r} changed', None)
