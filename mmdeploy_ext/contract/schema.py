"""Checks of plain JSON values by type, range and length, put together from small ones.

A check is called with a value and its key (`std[1]`, or '' for the whole), which is for the message; it
returns None, or raises `Mismatch` with one line. Needs only the standard library.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any, str], None]
LARGEST = 1e30
"""Largest number that passes where a check states no other: float32 has room for it times pixels."""
LONGEST = 100_000
"""Number of entries that a list may have where a check states no other."""


class Mismatch(ValueError):
    """A value that is not what its schema says; the message is mostly `KEY is GOT, expected WHAT`."""


def mismatch(value: Any, key: str, expected: str) -> Mismatch:
    """Return the error of a value under a key; `expected` is what was expected, in words."""
    got = repr(value)
    got = got if len(got) <= 60 else f'{got[:57]}...'
    return Mismatch(f'{key} is {got}, expected {expected}'.lstrip())


def number(
    minimum: float = -LARGEST,
    maximum: float = LARGEST,
    *,
    above: float | None = None,
    integer: bool = False,
) -> Check:
    """Return a check of a finite number.

    Args:
        minimum: smallest number that passes.
        maximum: largest number that passes.
        above: number that does not pass, nor do smaller ones, beside `minimum`; None: there is none.
        integer: whether the number has to be an int; a bool is no number.
    """
    types = int if integer else (int, float)
    title = 'a whole number' if integer else 'a number'
    bounds = f'of at least {minimum:g}' if above is None else f'above {above:g}'
    if minimum == -LARGEST and above == 0:
        title, bounds = 'a positive number', ''
    expected = f'{title} {bounds}'.rstrip()
    if maximum != LARGEST:
        expected += f' {"and" if bounds else "of"} at most {maximum:g}'
    if minimum == -LARGEST and above is None and maximum == LARGEST:
        expected = f'{title} that is finite'

    def check(value: Any, key: str) -> None:
        is_number = isinstance(value, types) and not isinstance(value, bool)
        if not is_number or not minimum <= value <= maximum or not math.isfinite(value):
            raise mismatch(value, key, expected)
        if above is not None and value <= above:
            raise mismatch(value, key, expected)

    return check


def text(pattern: str = r'(?s).*', expected: str = 'a text') -> Check:
    """Return a check of a text that the regular expression matches as a whole; `expected` is it in words."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise mismatch(value, key, expected)

    return check


def one_of(*choices: Any) -> Check:
    """Return a check of a value that is one of several, of its type too (True is not 1)."""

    def check(value: Any, key: str) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise mismatch(value, key, ' or '.join(map(repr, choices)))

    return check


def maybe(check: Check) -> Check:
    """Return a check that lets None pass, and is `check` for all else."""
    return lambda value, key: None if value is None else check(value, key)


def either(first: Check, second: Check) -> Check:
    """Return a check of a value that passes one of two checks; the second is for lists and tuples alone."""

    def check(value: Any, key: str) -> None:
        try:
            first(value, key)
        except Mismatch:
            if not isinstance(value, list | tuple):
                raise
            second(value, key)

    return check


def items(check: Check, minimum: int = 0, maximum: int = LONGEST) -> Check:
    """Return a check of a list or tuple of `minimum` to `maximum` values that all pass another check."""
    count = f'{minimum}' if minimum == maximum else f'{minimum} to {maximum}'

    def check_list(value: Any, key: str) -> None:
        if not isinstance(value, list | tuple) or not minimum <= len(value) <= maximum:
            raise mismatch(value, key, f'a list of {count} values')
        for index, item in enumerate(value):
            check(item, f'{key}[{index}]')

    return check_list


def exactly(count: int, check: Check) -> Check:
    """Return a check of a list or tuple of `count` values that all pass another check."""
    return items(check, count, count)


def mapping(check: Check) -> Check:
    """Return a check of a dict with any keys, whose values all pass another."""

    def check_all(value: Any, key: str) -> None:
        if not isinstance(value, dict):
            raise mismatch(value, key, 'a dict')
        for name, item in value.items():
            check(item, _below(key, name))

    return check_all


def record(
    fields: Mapping[str, Check], needed: Sequence[str] = (), also: Check | None = None, closed: bool = True
) -> Check:
    """Return a check of a dict with known fields.

    Args:
        fields: name -> check of the value.
        needed: names of the fields that must be there.
        also: check of the dict as a whole, called once all fields are right; None if there is no such check.
        closed: whether fields of other names are refused.
    """

    def check(value: Any, key: str) -> None:
        if not isinstance(value, dict):
            raise mismatch(value, key, 'a dict')
        if absent := [name for name in needed if name not in value]:
            raise Mismatch(f'{key} has no {absent[0]!r}'.lstrip())
        for name, item in value.items():
            if name in fields:
                fields[name](item, _below(key, name))
            elif closed:
                raise Mismatch(f'{_below(key, name)} is not known; expected {", ".join(fields)}')
        if also is not None:
            also(value, key)

    return check


def full_record(*, also: Check | None = None, closed: bool = True, **fields: Check) -> Check:
    """Return a check of a dict that has all of these fields; see `record`.

    `also` and `closed` are those of `record`.
    """
    return record(fields, tuple(fields), also, closed)


def open_record(*, also: Check | None = None, **fields: Check) -> Check:
    """Return a check of a dict in which any of these keys may be missing, and which may have others.

    `fields` is key -> check of its value; `also` is that of `record`.
    """
    return record(fields, also=also, closed=False)


def anything(value: Any, key: str) -> None:
    """Let every value pass."""


def _below(key: str, name: object) -> str:
    """Return the key of a field: `stds` in `coder` is `coder.stds`."""
    return f'{key}.{name}' if key else str(name)


FLAG = one_of(True, False)
NAME = text(r'(?s).+', 'a text that is not empty')
"""Checks of a bool, and of any text but ''."""
SIZE = number(0, 16_384, integer=True)
"""Check of a side of a network's input in pixels; 0 stands for that of the config's test pipeline."""
COUNT = number(1, 100_000, integer=True)
PIXELS = number(1, 16_384, integer=True)
"""Checks of a number of things, and of a side of a picture in pixels; neither is 0."""
LIMIT = number(-1, 10**9, integer=True)
"""Check of a limit, such as that of the number of results: -1 or more. Settings whose -1 is no limit mostly
have no limit with 0, too."""
POSITIVE = number(above=0)
FRACTION = number(0, 1)
TRIPLE = exactly(3, COUNT)
"""Check of three numbers of things, one per axis."""
RANGE = exactly(6, number())
"""Check of six numbers: of a range of points the least x, y, z, then the greatest, which is not checked."""
STRIDES = items(number(1, 4096, integer=True), 1, 64)
"""Check of the strides of feature maps, pixels per cell; that they go from fine to coarse is not checked."""
DIGEST = text('[0-9a-f]{64}', '64 hexadecimal digits')


def equal_lengths(*keys: str) -> Check:
    """Return a check of a dict whose lists under these keys, if present, must have the same length."""

    def check(facts: Mapping[str, Any], key: str) -> None:
        lengths = {name: len(facts[name]) for name in keys if name in facts}
        if len(set(lengths.values())) > 1:
            raise Mismatch(', '.join(f'{name} has {length} entries' for name, length in lengths.items()))

    return check
