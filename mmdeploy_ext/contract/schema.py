"""Checks of plain JSON values by type, range and length, put together from small ones. Needs nothing.

A check is called with a value and with where it is (`std[1]`), and raises `Mismatch` with one line.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any, str], None]
LARGEST = 1e30
"""Of any number: float32 has room for it, and for products with pixels."""
LONGEST = 100_000
"""Entries of any list."""


class Mismatch(ValueError):
    """A value that is not what its schema says; the message is `WHERE is GOT, expected WHAT`."""


def mismatch(value: Any, where: str, expected: str) -> Mismatch:
    """Return the error of one value."""
    got = repr(value)
    got = got if len(got) <= 60 else f'{got[:57]}...'
    return Mismatch(f'{where} is {got}, expected {expected}'.lstrip())


def number(
    least: float = -LARGEST, most: float = LARGEST, *, above: float | None = None, whole: bool = False
) -> Check:
    """Return a check of a finite number from `least` to `most`, or `above` one; `whole`: no fractions."""
    kinds = int if whole else (int, float)
    title = 'a whole number' if whole else 'a number'
    bounds = f'of at least {least:g}' if above is None else f'above {above:g}'
    if least == -LARGEST and above == 0:
        title, bounds = 'a positive number', ''
    expected = f'{title} {bounds}'.rstrip()
    if most != LARGEST:
        expected += f' {"and" if bounds else "of"} at most {most:g}'
    if least == -LARGEST and above is None and most == LARGEST:
        expected = f'{title} that is finite'

    def check(value: Any, where: str) -> None:
        right = isinstance(value, kinds) and not isinstance(value, bool)
        if not right or not least <= value <= most or not math.isfinite(value):
            raise mismatch(value, where, expected)
        if above is not None and value <= above:
            raise mismatch(value, where, expected)

    return check


def text(pattern: str = r'(?s).*', expected: str = 'a text') -> Check:
    """Return a check of a text that a regular expression matches as a whole."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise mismatch(value, where, expected)

    return check


def one_of(*choices: Any) -> Check:
    """Return a check of a value that is one of several, of its type too (True is not 1)."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise mismatch(value, where, ' or '.join(map(repr, choices)))

    return check


def maybe(check: Check) -> Check:
    """Return a check that lets None pass."""
    return lambda value, where: None if value is None else check(value, where)


def either(first: Check, second: Check) -> Check:
    """Return a check of a value that passes one of two; of a list the second says what is wrong."""

    def check(value: Any, where: str) -> None:
        try:
            first(value, where)
        except Mismatch:
            if not isinstance(value, list | tuple):
                raise
            second(value, where)

    return check


def items(check: Check, least: int = 0, most: int = LONGEST) -> Check:
    """Return a check of a list of so many values that all pass another."""
    count = f'{least}' if least == most else f'{least} to {most}'

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise mismatch(value, where, f'a list of {count} values')
        for index, item in enumerate(value):
            check(item, f'{where}[{index}]')

    return check_list


def exactly(count: int, check: Check) -> Check:
    """Return a check of a list of `count` values."""
    return items(check, count, count)


def mapping(check: Check) -> Check:
    """Return a check of a dict with any keys, whose values all pass another."""

    def check_all(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise mismatch(value, where, 'a dict')
        for key, item in value.items():
            check(item, _below(where, key))

    return check_all


def record(
    fields: Mapping[str, Check], needed: Sequence[str] = (), also: Check | None = None, closed: bool = True
) -> Check:
    """Return a check of a dict by its keys: the check of each, those `needed`, no others where `closed`.

    `also` looks at the whole, once all values are right.
    """

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise mismatch(value, where, 'a dict')
        if absent := [key for key in needed if key not in value]:
            raise Mismatch(f'{where} has no {absent[0]!r}'.lstrip())
        for key, item in value.items():
            if key in fields:
                fields[key](item, _below(where, key))
            elif closed:
                raise Mismatch(f'{_below(where, key)} is not known; expected {", ".join(fields)}')
        if also is not None:
            also(value, where)

    return check


def full_record(*, also: Check | None = None, closed: bool = True, **fields: Check) -> Check:
    """Return a check of a dict that has all of these keys; see `record`."""
    return record(fields, tuple(fields), also, closed)


def open_record(*, also: Check | None = None, **fields: Check) -> Check:
    """Return a check of what a file tells its consumer: any key may be missing, and there may be others."""
    return record(fields, also=also, closed=False)


def anything(value: Any, where: str) -> None:
    """Let every value pass."""


def _below(where: str, key: object) -> str:
    return f'{where}.{key}' if where else str(key)
