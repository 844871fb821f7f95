"""Events of an observed run at lines of code, and sizes of tensors that record what Python does with them.

A marked size is a `SizeInt` or `SizeFloat`: a number with its origins, the reads of shapes that it was
computed from. Arithmetic keeps the marks, comparisons and conversions are reported to the recorder.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from mmdeploy_ext.lint.sites import Site, caller

Origins = frozenset[tuple[str, int, int]]
"""(line, number of earlier reads at that line, axis) of every size that a number was computed from.

The line is the text of a site, 'file:line'. The same read in a run with other inputs has the same origin.
"""

ARITHMETIC = (
    '__add__', '__radd__', '__sub__', '__rsub__', '__mul__', '__rmul__', '__floordiv__', '__rfloordiv__',
    '__mod__', '__rmod__', '__truediv__', '__rtruediv__', '__pow__', '__rpow__', '__neg__', '__abs__',
    '__lshift__', '__rlshift__', '__rshift__', '__rrshift__', '__divmod__', '__rdivmod__', '__and__',
    '__rand__', '__or__', '__ror__', '__xor__', '__rxor__', '__invert__', '__pos__',
)  # fmt: skip
"""Methods of numbers whose results are marked, too."""
COMPARISONS = ('__lt__', '__le__', '__gt__', '__ge__', '__eq__', '__ne__', '__bool__')
IN_PLACE = ('__iadd__', '__isub__', '__imul__', '__ifloordiv__')
CONVERSIONS = (
    '__int__', '__float__', '__index__', '__ceil__', '__floor__', '__round__', '__trunc__', 'bit_length',
    'bit_count', 'is_integer', 'as_integer_ratio', 'to_bytes', 'hex',
)  # fmt: skip
"""Methods of numbers that the recorder is told of, in these three groups; see `Recorder`."""


@dataclasses.dataclass(frozen=True)
class Event:
    """One rule met at one line, once.

    Attributes:
        rule: id of the rule.
        site: the line; None if it is about the module or an input as a whole.
        detail: text on what was done there; 'input 0' and 'inputs 0, 2' become names in the report.
        origins: of the sizes that it depends on: the event is dropped if none of them differs between
            inputs. None if it does not depend on sizes.
    """

    rule: str
    site: Site | None
    detail: str
    origins: Origins | None = None


class Recorder:
    """What was seen in one run.

    Attributes:
        events: events in their order.
        sizes: origin -> size, of all sizes of the shapes that were read.
        comparisons: (file and function, compared numbers, origins) of comparisons of sizes that are no
            branch, loop or guard, such as that in `min(k, size)`, and not `handled`; for top-k.
        handled: origins of sizes whose comparison is no branch, loop or guard either, but in a function that
            tests for torch.Tensor by `isinstance`: in an export it takes other code.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.sizes: dict[tuple[str, int, int], int] = {}
        self.comparisons: list[tuple[str, list[Any], Origins]] = []
        self.handled: Origins = frozenset()
        self._reads: collections.Counter[str] = collections.Counter()

    def add(self, rule: str, detail: str, site: Site | None, origins: Origins | None = None) -> None:
        """Add an event; `rule` and `detail`, and the others, are the attributes of `Event`.

        `site` is None for the module or an input as a whole, `origins` if the event does not depend on sizes.
        """
        self.events.append(Event(rule, site, detail, origins))

    def read_sizes(self, site: Site, shape: tuple[int, ...]) -> list[Origins]:
        """Note that the line `site` read a shape; return a set of one origin for each of its sizes."""
        count = self._reads[site.text]
        self._reads[site.text] += 1
        keys = [(site.text, count, axis) for axis in range(len(shape))]
        self.sizes.update(zip(keys, shape, strict=True))
        return [frozenset([key]) for key in keys]

    def compared(self, origins: Origins, values: list[Any]) -> None:
        """Note that a size was compared, or tested by `bool`; `SizeInt` and `SizeFloat` call it.

        `origins` are those of the size, and of the other one if two were compared. `values` are the size
        as a plain number, and what it was compared with, if it was not tested.
        """
        site = caller()
        if site is None:
            return
        if site.waiting == 'handled':
            self.handled |= origins
        if not site.waiting:  # min(k, size): a guard or a branch chooses no number
            self.comparisons.append((f'{site.file} {site.function}', values, origins))
        if site.waiting in ('branch', 'loop', 'counted'):
            rule = 'size-in-loop' if site.waiting in ('loop', 'counted') else 'size-in-branch'
            numbers, verb = ' and '.join(map(str, values[:2])), 'compared' if len(values) > 1 else 'tested'
            self.add(rule, f'size {numbers} {verb}', site, origins)

    def converted(self, origins: Origins, name: str) -> None:
        """Note that a size became a plain number in Python; `name` is that of the method or function.

        `origins` are those of the size. A conversion that only a guard reads is no event.
        """
        site = caller()
        if site is not None and site.waiting != 'guard':
            self.add('size-to-python', f'{name.strip("_")}() of a size', site, origins)

    def changed_in_place(self, origins: Origins) -> None:
        """Note that a size was changed by a method of `IN_PLACE`, such as `+=`; `origins` are its origins."""
        site = caller()
        if site is not None:
            self.add('size-changed-in-place', 'a size is changed in place', site, origins)

    def fixed_sizes(self, second_run: Recorder) -> Origins:
        """Return the origins of the sizes that were the same in `second_run`, that of other inputs.

        Sizes that only one of the runs read are not among them.
        """
        return frozenset(key for key, size in self.sizes.items() if second_run.sizes.get(key) == size)


class SizeInt(int):
    """A size, or a whole number computed from sizes; `recorder` is told what becomes of it."""

    origins: Origins
    recorder: Recorder


class SizeFloat(float):
    """A float computed from sizes; `recorder` is told what becomes of it."""

    origins: Origins
    recorder: Recorder


def mark_size(value: Any, origins: Origins, recorder: Recorder) -> Any:
    """Return `value`, an int, a float or a tuple of such, as sizes that `recorder` watches.

    Other values stay as they are, among them bools and sizes that are marked already. `origins` are the reads
    of shapes that it follows from.
    """
    if isinstance(value, tuple):
        return tuple(mark_size(item, origins, recorder) for item in value)
    if type(value) not in (int, float):
        return value
    marked = (SizeInt if type(value) is int else SizeFloat)(value)
    marked.origins, marked.recorder = origins, recorder
    return marked


def origins_of(*values: Any) -> Origins:
    """Return the origins of the marked sizes among the values, together; an empty set if there are none.

    Lists and tuples among them are not looked into, see `nested.leaves`.
    """
    return frozenset().union(*(value.origins for value in values if is_size(value)))


def is_size(value: Any) -> bool:
    """Return whether a value is a marked size."""
    return isinstance(value, SizeInt | SizeFloat)


def plain(value: Any) -> Any:
    """Return a marked size as a plain int or float; anything else as it is."""
    number_type = int if isinstance(value, SizeInt) else float
    return number_type.__pos__(value) if is_size(value) else value


def _method(number_type: type, name: str) -> Callable[..., Any]:
    """Return a method that computes as that of a plain number, and records what becomes of a size."""
    plain_method = getattr(number_type, name)

    def method(self: Any, *operands: Any) -> Any:
        numbers, origins = [plain(self), *map(plain, operands)], origins_of(self, *operands)
        if name in COMPARISONS:
            self.recorder.compared(origins, numbers)
        elif name in CONVERSIONS:
            self.recorder.converted(self.origins, name)
        result = plain_method(*numbers)
        if result is NotImplemented and any(isinstance(operand, list | tuple | str) for operand in operands):
            self.recorder.converted(origins, name)  # so many copies of a sequence
        if result is NotImplemented and all(isinstance(number, int | float) for number in numbers):
            result = getattr(float, name)(*map(float, numbers))
        return mark_size(result, origins, self.recorder) if name in ARITHMETIC else result

    return method


def _in_place_method(name: str) -> Callable[..., Any]:
    def method(self: Any, operand: Any) -> Any:
        self.recorder.changed_in_place(self.origins)
        return getattr(self, name.replace('__i', '__', 1))(operand)

    return method


for _marked_type, _number_type in ((SizeInt, int), (SizeFloat, float)):
    for _name in (*ARITHMETIC, *COMPARISONS, *CONVERSIONS):
        if hasattr(_number_type, _name):
            setattr(_marked_type, _name, _method(_number_type, _name))
    for _name in IN_PLACE:
        setattr(_marked_type, _name, _in_place_method(_name))
