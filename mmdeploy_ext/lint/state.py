"""What a forward pass leaves behind in its module: attributes and buffers that it wrote."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mmdeploy_ext.compat.import_hook import patched
from mmdeploy_ext.lint.nested import tensors_in
from mmdeploy_ext.lint.record import Recorder
from mmdeploy_ext.lint.sites import caller

OWN = {'_buffers', '_parameters', '_modules', '_non_persistent_buffers_set', 'training'}
HOOKS = ('_forward', '_backward')


def held(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield 'module.attribute' and value of what a module holds beside its parameters and buffers."""
    for path, part in module.named_modules():
        for name, value in part.__dict__.items():
            if name not in OWN:
                yield f'{path}.{name}'.lstrip('.'), value


def versions(module: torch.nn.Module) -> dict[str, list[tuple[int, int]]]:
    """Return name of an attribute or buffer -> identity and version of its tensors."""
    values = {name: value for name, value in held(module) if not name.split('.')[-1].startswith(HOOKS)}
    for path, part in module.named_modules():  # `named_buffers` may give what has two names twice, or once
        values.update({f'{path}.{name}'.lstrip('.'): one for name, one in part._buffers.items()})
    return {name: [(id(one), one._version) for one in tensors_in(value)] for name, value in values.items()}


def held_tensors(module: torch.nn.Module) -> dict[int, str]:
    """Return id -> name of the tensors that a module holds beside its parameters and buffers."""
    return {id(tensor): name for name, value in held(module) for tensor in tensors_in(value)}


@contextlib.contextmanager
def watch_attributes(module: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Write down which attributes and buffers with tensors are set or changed inside the block, and numbers.

    A number counts where it replaces another one: a counter of frames, not a size that is kept.

    One target, `torch.nn.Module.__setattr__`, restored on exit; what is changed in other ways (an item of a
    list or dict) is found by comparing afterwards, and has no line.
    """
    before = versions(module)
    names = {id(part): path for path, part in module.named_modules()}
    original = torch.nn.Module.__setattr__
    seen = set()

    def watched(self: torch.nn.Module, name: str, value: Any) -> None:
        if id(self) in names and (next(tensors_in(value), None) is not None or _counts(self, name, value)):
            full = f'{names[id(self)]}.{name}'.lstrip('.')
            if (site := caller()) is not None:
                seen.add(full)
                recorder.add('state-written', f'attribute {full!r} is set', site)
        original(self, name, value)

    with patched(torch.nn.Module, __setattr__=watched):
        yield
    _add_unseen(before, versions(module), seen, recorder)


def _counts(module: torch.nn.Module, name: str, value: Any) -> bool:
    """Return whether an attribute is a number that becomes another one."""
    old = module.__dict__.get(name)
    return name not in OWN and all(type(one) in (int, float, bool) for one in (old, value)) and old != value


def _add_unseen(before: dict[str, Any], after: dict[str, Any], seen: set[str], recorder: Recorder) -> None:
    in_place = [event.detail for event in recorder.events if event.rule == 'state-written']
    for name, tensors in after.items():
        known = name in seen or any(repr(name) in detail for detail in in_place)
        if tensors and not known and tensors != before.get(name):
            recorder.add('state-written', f'attribute {name!r} changed', None)
