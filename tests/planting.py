"""How a fault is planted in our own code: what is replaced, and by what; all is restored on exit.

A fault is named by what it does to a public function, method or constant, never by a line or a private name.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import sys
import unittest.mock
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Idle = Callable[[], list[str]]
    Make = Callable[[Callable], Callable]
    Change = tuple[str, Make]

TOYS_OF = dict(
    dense=('atss', 'retinanet', 'yolox', 'ssd', 'centernet'),
    two_stage=('faster_rcnn', 'cascade_rcnn', 'soft_rcnn'),
    masks=('mask_rcnn',),
    query=('deformable_detr', 'detr', 'dino'),
    query_masks=('queryinst', 'mask2former'),
    panoptic=('panoptic_fpn', 'mask2former_panoptic'),
    yolact=('yolact',),
    corner=('cornernet', 'centripetalnet'),
    solo=('solov2', 'decoupled_solo', 'solo'),
    rtdetr=('rtdetr',),
    streampetr=('streampetr', 'streampetr_padded'),
    centerpoint=('centerpoint', 'centerpoint_rotate', 'centerpoint_circle'),
    anchor3d=('pointpillars', 'pillars', 'second', 'mvx'),
    bevfusion=('bevfusion', 'bevfusion_varied'),
    sparse_portable=('sparse_portable',),
    sparse_libspconv=('sparse_libspconv',),
    autoware=('autoware_centerpoint', 'autoware_varied'),
)
"""Family of the mutation table -> its toys, keys of `planted_toys.FAULT_TOYS`."""
FAMILY_OF = {toy: family for family, toys in TOYS_OF.items() for toy in toys}


@dataclasses.dataclass(frozen=True)
class Planted:
    """One fault.

    Attributes:
        name: what is wrong.
        toy: whose export has it: key of `planted_toys.FAULT_TOYS`.
        apply: gives the context inside which our code has the fault; entering it gives a function that lists
            the changed places which nothing has called so far.
        shared: the code is that of the PyTorch side too (pictures, class names, sweeps): the results of the
            reference may change with it. Of other faults they have to stay the same, bit for bit.
        options: of the export, besides those of the toy: name of the family's option -> value.
        places: what is replaced, see `replaced`.
        in_graph: level 1 compares the graph of the file with that of the model, not with another export by
            the same code, so that a difference of the graph is how the fault has to be found.
    """

    name: str
    toy: str
    apply: Callable[[], contextlib.AbstractContextManager[Idle]]
    shared: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    places: tuple[str, ...] = ()
    in_graph: bool = False

    @property
    def family(self) -> str:
        """Row of the mutation table."""
        return FAMILY_OF[self.toy]


OURS = ('mmdeploy_ext', 'projects')
REFERENCE = ('.reference', '.mmdet_reference', '.lidar_reference')
"""Ends of the names of modules that run the PyTorch side: they keep the functions that others define."""
FAULTS: list[Planted] = []
"""All of them; filled by the modules that `planted_faults` imports."""


def planted(
    name: str, toys: str, *changes: Change, shared: bool = False, in_graph: bool = False, **options: Any
) -> None:
    """Add a fault to each of several toys.

    Args:
        name: what is wrong; the same toy has no other fault of this name.
        toys: keys of `planted_toys.FAULT_TOYS`, as words.
        changes: what `replaced` takes, each; all are applied together.
        shared: see `Planted`.
        in_graph: see `Planted`.
        options: see `Planted`.
    """
    places = tuple(place for place, _ in changes)
    for toy in toys.split():
        FAULTS.append(Planted(name, toy, lambda: _all_replaced(changes), shared, options, places, in_graph))


@contextlib.contextmanager
def _all_replaced(changes: Iterable[Change]) -> Iterator[Idle]:
    """Do all changes; see `Planted.apply`."""
    idle: dict[str, None] = {}
    with contextlib.ExitStack() as stack:
        for place, make in changes:
            idle[place] = None
            stack.enter_context(replaced(place, _noting(make, lambda place=place: idle.pop(place, None))))
        yield lambda: list(idle)


def _noting(make: Make, called: Callable[[], Any]) -> Make:
    """Return `make` whose function calls `called` first; a constant counts as called."""

    def noting(original: Any) -> Any:
        changed = make(original)
        if not callable(original):
            called()
            return changed

        @functools.wraps(changed)
        def noted(*args: Any, **kwargs: Any) -> Any:
            called()
            return changed(*args, **kwargs)

        return noted

    return noting


@contextlib.contextmanager
def replaced(place: str, make: Make) -> Iterator[None]:
    """Replace 'module:name' or 'module:Class.name' by what `make` returns for the original.

    A function that is replaced in the module that defines it is replaced in all of our modules, their tables
    and classes that have it, as if its text were wrong, but for those that run the reference; in a module
    that imports it, in this one alone. A constant is replaced in its module.
    """
    module, path = place.split(':')
    owner: Any = importlib.import_module(module)
    *classes, name = path.split('.')
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    changed = make(original.fget if isinstance(original, property) else original)
    owners = [(owner, name)]
    if not classes and getattr(original, '__module__', '') == module:
        owners = _owners(original, len(sys.modules))
    with contextlib.ExitStack() as stack:
        for one, known in owners:
            stack.enter_context(_attribute(one, known, changed))
        yield


@functools.cache
def _owners(function: Any, modules: int) -> list[tuple[Any, Any]]:
    """Return our modules, their tables and classes that have a function, and its name or key there.

    It is looked for anew when there are other `modules`, as many as Python has loaded.
    """
    owners, seen = [], set()
    for title, module in list(sys.modules.items()):
        if not title.startswith(OURS) or title.endswith(REFERENCE) or module is None:
            continue
        for name, value in list(vars(module).items()):
            if value is function:
                owners.append((module, name))
            elif isinstance(value, dict) and not name.startswith('__') and id(value) not in seen:
                seen.add(id(value))
                owners += ((value, key) for key, entry in list(value.items()) if entry is function)
            elif isinstance(value, type) and value.__module__.startswith(OURS) and id(value) not in seen:
                seen.add(id(value))
                for attribute, entry in list(vars(value).items()):
                    if entry is function or getattr(entry, '__func__', None) is function:
                        owners.append((value, attribute))
    return owners


@contextlib.contextmanager
def _attribute(owner: Any, name: Any, changed: Any) -> Iterator[None]:
    """Set an attribute of a module or class, or an entry of a table.

    A class that has inherited the attribute inherits it again afterwards.
    """
    if isinstance(owner, dict):
        with unittest.mock.patch.dict(owner, {name: changed}):
            yield
        return
    before = vars(owner).get(name)
    if isinstance(before, property):
        changed = property(changed)
    setattr(owner, name, staticmethod(changed) if isinstance(before, staticmethod) else changed)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def altered(owner: Any, name: str, make: Make) -> Callable[[Any], None]:
    """Return what replaces a function of a module or class by `make(the function)`, given a monkeypatch."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def when_traced(wrong: Callable) -> Make:
    """Return what runs `wrong(original, *args)` while torch.onnx traces, and the original otherwise."""

    def make(original: Callable) -> Callable:
        def chosen(*args: Any, **kwargs: Any) -> Any:
            if torch.onnx.is_in_onnx_export():
                return wrong(original, *args, **kwargs)
            return original(*args, **kwargs)

        return chosen

    return make


def traced(make: Make) -> Make:
    """Return what has the fault while torch.onnx traces, and is the original otherwise."""

    def of(original: Callable) -> Callable:
        changed = make(original)
        return when_traced(lambda _, *args, **kwargs: changed(*args, **kwargs))(original)

    return of


def called(wrong: Callable) -> Make:
    """Return what runs `wrong(original, *args)` in place of the original."""
    return lambda original: lambda *args, **kwargs: wrong(original, *args, **kwargs)


def arguments(change: Callable) -> Make:
    """Return what calls the original with `change(*args)` instead of its arguments."""
    return lambda original: lambda *args: original(*change(*args))


def argument(place: int, change: Callable) -> Make:
    """Return what calls the original with one positional argument changed."""

    def make(original: Callable) -> Callable:
        def changed(*args: Any, **kwargs: Any) -> Any:
            return original(*args[:place], change(args[place]), *args[place + 1 :], **kwargs)

        return changed

    return make


def result(change: Callable) -> Make:
    """Return what gives `change(result, *args)` of the original."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs), *args)


def settings(**changes: Callable) -> Make:
    """Return what reads settings, a data class or a dict, wrongly: field -> change of its value."""

    def wrong(right: Any, *_: Any) -> Any:
        if isinstance(right, dict):
            return right | {name: change(right[name]) for name, change in changes.items()}
        return dataclasses.replace(
            right, **{name: change(getattr(right, name)) for name, change in changes.items()}
        )

    return result(wrong)


def folding(change: Callable[[torch.nn.Module], None]) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a fault of the export: it works on a copy of the model to which `change` was done."""
    return lambda: _all_replaced([('mmdeploy_ext.exporting.copy:prepared', _of_changed(change))])


def _of_changed(change: Callable[[torch.nn.Module], None]) -> Make:
    def make(original: Callable) -> Callable:
        def prepared(model: torch.nn.Module) -> torch.nn.Module:
            model = copy.deepcopy(model)
            change(model)
            return original(model)

        return prepared

    return make
