"""Events of an observed run at lines of code, and sizes of tensors that record what Python does with them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from mmdeploy_ext.lint.sites import Site, caller

Origins = frozenset[tuple[str, int, int]]
"""(line, how many times it ran before, axis) of every size that a number was computed from."""

ARITHMETIC = (
    '__add__', '__radd__', '__sub__', '__rsub__', '__mul__', '__rmul__', '__floordiv__', '__rfloordiv__',
    '__mod__', '__rmod__', '__truediv__', '__rtruediv__', '__pow__', '__rpow__', '__neg__', '__abs__',
    '__lshift__', '__rshift__', '__divmod__',
)  # fmt: skip
COMPARISONS = ('__lt__', '__le__', '__gt__', '__ge__', '__eq__', '__ne__', '__bool__')
IN_PLACE = ('__iadd__', '__isub__', '__imul__', '__ifloordiv__')
CONVERSIONS = ('__int__', '__float__', '__ceil__', '__floor__', '__round__', '__trunc__')


@dataclasses.dataclass(frozen=True)
class Event:
    """One rule met at one line, once; `site` and `origins` are None if no line or no sizes decide."""

    rule: str
    site: Site | None
    detail: str
    origins: Origins | None = None


class Recorder:
    """Events of one run, in their order, and the sizes that were read in it (`sizes`: origin -> size).

    Attributes:
        comparisons: (function, numbers, origins) of comparisons of sizes with numbers, for top-k.
        handled: sizes that a function took which has another form for tensors.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.sizes: dict[tuple[str, int, int], int] = {}
        self.comparisons: list[tuple[str, list[Any], Origins]] = []
        self.handled: Origins = frozenset()
        self._reads: collections.Counter[str] = collections.Counter()

    def add(self, rule: str, detail: str, site: Site | None, origins: Origins | None = None) -> None:
        """Write an event down."""
        self.events.append(Event(rule, site, detail, origins))

    def read_sizes(self, site: Site, shape: tuple[int, ...]) -> list[Origins]:
        """Note that a line read a shape; return where each axis comes from."""
        count = self._reads[site.text]
        self._reads[site.text] += 1
        keys = [(site.text, count, axis) for axis in range(len(shape))]
        self.sizes.update(zip(keys, shape, strict=True))
        return [frozenset([key]) for key in keys]

    def compared(self, origins: Origins, values: list[Any]) -> None:
        """Note that a size decided something: `SizeInt` calls it for every comparison."""
        site = caller()
        if site is None:
            return
        if site.waiting == 'handled':
            self.handled |= origins
        if not site.waiting:  # min(k, size): a guard or a branch chooses no number
            self.comparisons.append((f'{site.file} {site.function}', values, origins))
        if site.waiting in ('branch', 'loop', 'counted'):
            rule = 'size-in-branch' if site.waiting == 'branch' else 'size-in-loop'
            numbers, verb = ' and '.join(map(str, values[:2])), 'compared' if len(values) > 1 else 'tested'
            self.add(rule, f'size {numbers} {verb}', site, origins)

    def converted(self, origins: Origins, name: str) -> None:
        """Note that a size became a plain Python number."""
        site = caller()
        if site is not None and site.waiting != 'guard':
            self.add('size-to-python', f'{name.strip("_")}() of a size', site, origins)

    def changed_in_place(self, origins: Origins) -> None:
        """Note that a size was changed by `+=` or the like."""
        site = caller()
        if site is not None:
            self.add('size-changed-in-place', 'a size is changed in place', site, origins)

    def fixed_sizes(self, second_run: Recorder) -> Origins:
        """Return the sizes that were the same in a run with other inputs."""
        return frozenset(key for key, size in self.sizes.items() if second_run.sizes.get(key) == size)


class SizeInt(int):
    """A size, or a number computed from sizes. Attributes: `origins`, `recorder`."""

    origins: Origins
    recorder: Recorder


class SizeFloat(float):
    """A quotient of sizes. Attributes: `origins`, `recorder`."""

    origins: Origins
    recorder: Recorder


def mark_size(value: Any, origins: Origins, recorder: Recorder) -> Any:
    """Return a plain number as one that is watched; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(mark_size(item, origins, recorder) for item in value)
    if type(value) not in (int, float):
        return value
    marked = (SizeInt if type(value) is int else SizeFloat)(value)
    marked.origins, marked.recorder = origins, recorder
    return marked


def origins_of(*values: Any) -> Origins:
    """Return where the sizes among the values come from."""
    return frozenset().union(*(value.origins for value in values if is_size(value)))


def is_size(value: Any) -> bool:
    """Return whether a number was computed from the size of a tensor."""
    return isinstance(value, SizeInt | SizeFloat)


def plain(value: Any) -> Any:
    """Return the number without the marks."""
    kind = int if isinstance(value, SizeInt) else float
    return kind.__pos__(value) if is_size(value) else value


def _method(kind: type, name: str) -> Callable[..., Any]:
    """Return a method that computes as that of a plain number, and records what becomes of a size."""
    plain_method = getattr(kind, name)

    def method(self: Any, *others: Any) -> Any:
        numbers, origins = [plain(self), *map(plain, others)], origins_of(self, *others)
        if name in COMPARISONS:
            self.recorder.compared(origins, numbers)
        elif name in CONVERSIONS:
            self.recorder.converted(self.origins, name)
        result = plain_method(*numbers)
        if result is NotImplemented and all(isinstance(number, int | float) for number in numbers):
            result = getattr(float, name)(*map(float, numbers))
        return mark_size(result, origins, self.recorder) if name in ARITHMETIC else result

    return method


def _in_place_method(name: str) -> Callable[..., Any]:
    def method(self: Any, operand: Any) -> Any:
        self.recorder.changed_in_place(self.origins)
        return getattr(self, name.replace('__i', '__', 1))(operand)

    return method


for _watched, _kind in ((SizeInt, int), (SizeFloat, float)):
    for _name in (*ARITHMETIC, *COMPARISONS, *CONVERSIONS):
        if hasattr(_kind, _name):
            setattr(_watched, _name, _method(_kind, _name))
    for _name in IN_PLACE:
        setattr(_watched, _name, _in_place_method(_name))
    _watched.__hash__ = _kind.__hash__
