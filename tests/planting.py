"""How a fault is planted in our own code: what is replaced, and by what; all is restored on exit."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Idle = Callable[[], list[str]]
    Make = Callable[[Callable], Callable]

TOYS_OF = dict(
    dense=('atss', 'retinanet', 'yolox'),
    two_stage=('faster_rcnn',),
    masks=('mask_rcnn',),
    query=('deformable_detr',),
    query_masks=('queryinst', 'mask2former'),
    panoptic=('panoptic_fpn', 'mask2former_panoptic'),
    yolact=('yolact',),
    corner=('cornernet',),
    solo=('solov2', 'decoupled_solo'),
    rtdetr=('rtdetr',),
    streampetr=('streampetr',),
    centerpoint=('centerpoint',),
    anchor3d=('pointpillars',),
    bevfusion=('bevfusion',),
    sparse_portable=('sparse_portable',),
    sparse_libspconv=('sparse_libspconv',),
    autoware=('autoware_centerpoint',),
)
"""Family of the mutation table -> its toys, keys of `mutation_toys.TOYS`."""
FAMILY_OF = {toy: family for family, toys in TOYS_OF.items() for toy in toys}


@dataclasses.dataclass(frozen=True)
class Planted:
    """One fault.

    Attributes:
        name: what is wrong.
        toy: whose export has it: key of `mutation_toys.TOYS`.
        apply: gives the context inside which our code has the fault; entering it gives a function that lists
            the changed places which nothing has called so far.
        shared: the code is that of the PyTorch side too (pictures, class names, sweeps): the results of the
            reference may change with it. Of other faults they have to stay the same, bit for bit.
        options: of the export, besides those of the toy: name of the family's option -> value.
    """

    name: str
    toy: str
    apply: Callable[[], contextlib.AbstractContextManager[Idle]]
    shared: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def family(self) -> str:
        """Row of the mutation table."""
        return FAMILY_OF[self.toy]


OURS = ('mmdeploy_ext', 'projects')
FAULTS: list[Planted] = []
"""All of them; filled by the modules that `planted_faults` imports."""


def planted(name: str, toys: str, *changes: tuple[str, Make], shared: bool = False, **options: Any) -> None:
    """Add a fault to each of several toys.

    Args:
        name: what is wrong; the same toy has no other fault of this name.
        toys: keys of `mutation_toys.TOYS`, as words.
        changes: what `replaced` takes, each; all are applied together.
        shared: see `Planted`.
        options: see `Planted`.
    """
    for toy in toys.split():
        FAULTS.append(Planted(name, toy, lambda: _all_replaced(changes), shared, options))


@contextlib.contextmanager
def _all_replaced(changes: Iterable[tuple[str, Make]]) -> Iterator[Idle]:
    """Do all changes; see `Planted.apply`."""
    idle: dict[str, None] = {}
    with contextlib.ExitStack() as stack:
        for place, make in changes:
            idle[place] = None
            stack.enter_context(replaced(place, _noting(make, lambda place=place: idle.pop(place, None))))
        yield lambda: list(idle)


def _noting(make: Make, called: Callable[[], Any]) -> Make:
    """Return `make` whose function calls `called` first."""

    def noting(original: Callable) -> Callable:
        changed = make(original)

        @functools.wraps(changed)
        def noted(*args: Any, **kwargs: Any) -> Any:
            called()
            return changed(*args, **kwargs)

        return noted

    return noting


@contextlib.contextmanager
def replaced(place: str, make: Make) -> Iterator[None]:
    """Replace 'module:name' or 'module:Class.name' by what `make` returns for the original.

    A function that is replaced in the module that defines it is replaced in all of our modules and classes
    that have it, as if its text were wrong; in a module that imports it, in this one alone.
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
        owners = list(_owners(original))
    with contextlib.ExitStack() as stack:
        for one, known in owners:
            stack.enter_context(_attribute(one, known, changed))
        yield


def _owners(function: Any) -> Iterator[tuple[Any, str]]:
    """Yield our modules and their classes that have a function, and its name there."""
    seen: set[int] = set()
    for title, module in list(sys.modules.items()):
        if not title.startswith(OURS) or module is None:
            continue
        for name, value in list(vars(module).items()):
            if value is function:
                yield module, name
            elif isinstance(value, type) and value.__module__.startswith(OURS) and id(value) not in seen:
                seen.add(id(value))
                for attribute, entry in list(vars(value).items()):
                    if entry is function or getattr(entry, '__func__', None) is function:
                        yield value, attribute


@contextlib.contextmanager
def _attribute(owner: Any, name: str, changed: Any) -> Iterator[None]:
    """Set an attribute of a module or class; a class that has inherited it inherits it again afterwards."""
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


def arguments(change: Callable) -> Make:
    """Return what calls the original with `change(*args)` instead of its arguments."""
    return lambda original: lambda *args: original(*change(*args))


def result(change: Callable) -> Make:
    """Return what gives `change(result, *args)` of the original."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs), *args)


def settings(**changes: Callable) -> Make:
    """Return what reads settings wrongly: field -> change of its value."""

    def wrong(found: Any, *_: Any) -> Any:
        return dataclasses.replace(
            found, **{name: change(getattr(found, name)) for name, change in changes.items()}
        )

    return result(wrong)


def folding(change: Callable[[torch.nn.Module], None]) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a fault of the folding: it works on a copy of the model to which `change` was done.

    Every module that has `fuse` as a name of its own gets the fault; one of them is to call it.
    """

    @contextlib.contextmanager
    def apply() -> Iterator[Idle]:
        ours = {name: module for name, module in sys.modules.items() if name.startswith(OURS)}
        places = [f'{name}:fuse' for name, module in ours.items() if 'fuse' in vars(module)]
        with _all_replaced((place, _of_changed(change)) for place in places) as idle:
            yield lambda: places if len(idle()) == len(places) else []

    return apply


def _of_changed(change: Callable[[torch.nn.Module], None]) -> Make:
    def make(original: Callable) -> Callable:
        def fuse(model: torch.nn.Module) -> torch.nn.Module:
            model = copy.deepcopy(model)
            change(model)
            return original(model)

        return fuse

    return make
