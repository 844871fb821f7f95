"""A choice about a graph: how it is declared, typed, checked and kept; needs neither torch nor mmcv.

Argument parsers, keys of `backend_config`, metadata of files and the commands that export again derive from
these declarations. A family says in its `options` which of them it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmdeploy_ext.contract.schema import Check, Mismatch, one_of
from mmdeploy_ext.contract.values import NAME
from mmdeploy_ext.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Option:
    """One choice about a graph.

    Attributes:
        name: as the metadata keeps it, and attribute of `Options`.
        default: its value where nothing is said.
        help: for the command line.
        choices: values that there are; empty: any that `schema` passes.
        schema: check of its value in the metadata of a file.
        flag: on the command line; by default from the name; an empty one is derived from other arguments.
        key: in `backend_config`; None where configs do not choose it.
        metavar: of its argument.
        least: of a number that is given.
        only_with: name and value of the option that it goes with; has no effect with other values.
        stated: whether the command that exports again states it at its default, too.
        pair: name of the option whose value follows in the same argument: height and width.
        hint: what to do instead of an unknown value.
        group: title above it in the help.
        open: whether families may have other choices.
        refused: values that are no choice -> why.
        fixes: choice -> what it fixes of other options, by name.
    """

    name: str
    default: Any
    help: str = ''
    choices: tuple[Any, ...] = ()
    schema: Check = NAME
    flag: str | None = None
    key: str | None = None
    metavar: str | None = None
    least: int | None = None
    only_with: tuple[str, Any] | None = None
    stated: bool = False
    pair: str = ''
    hint: str = ''
    group: str = ''
    open: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    fixes: Mapping[Any, Mapping[str, Any]] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def typed(self) -> str:
        """Return the option as it is typed on a command line."""
        return f'--{self.name.replace("_", "-")}' if self.flag is None else self.flag

    def as_typed(self, where: str = '--', value: Any = None) -> str:
        """Return the option as the user wrote it: `--fp16-io`, or a key of a config behind `where`."""
        if where != '--':
            return where + (self.key or self.name)
        return f'--no-{self.typed[2:]}' if self.default is True and value is False else self.typed

    def with_value(self, value: Any, where: str = '--') -> str:
        """Return the option with its value, as the user wrote it."""
        if isinstance(value, bool):
            return self.as_typed(where, value)
        shown = ' '.join(map(str, value)) if isinstance(value, tuple) else value
        return f'{self.as_typed(where)} {shown}' if where == '--' else f'{self.as_typed(where)}={value!r}'

    def with_value_of(self, values: Mapping[str, Any]) -> str:
        """Return the option with its value among `values`, as the user wrote it."""
        value = values[self.name]
        return self.with_value((value, values[self.pair]) if self.pair in values else value)

    def check(self, value: Any, where: str = '--') -> None:
        """Refuse an unknown value; UsageError says what there is."""
        said, hint = self.with_value(value, where), f'; {self.hint}' if self.hint else ''
        if isinstance(value, str) and value in self.refused:
            raise UsageError(f'{said}: {self.refused[value]}')
        if self.choices:
            if value not in self.choices:
                several = f'one of {", ".join(self.choices)}'
                shown = several if len(self.choices) > 2 else ' or '.join(self.choices)
                raise UsageError(f'{said}{":" if where == "--" else ","} expected {shown}{hint}')
            return
        if isinstance(self.default, int) and type(value) is not type(self.default):
            kind = 'a number' if type(self.default) is int else 'True or False'
            raise UsageError(f'{said}, expected {kind}')
        if self.least is not None and value < self.least:
            least = 'a positive number' if self.least == 1 else f'at least {self.least}'
            raise UsageError(f'{said}: expected {least}{hint}')
        try:
            self.schema(list(value) if isinstance(value, tuple) else value, '')
        except Mismatch as error:
            raise UsageError(f'{said}: {error}') from error

    def add_to(self, parser: Any) -> None:
        """Add the option to a parser or a group of one; None stands for not given."""
        import argparse

        kind: dict[str, Any] = {}
        if isinstance(self.default, bool):
            on_off = argparse.BooleanOptionalAction
            kind = dict(action=on_off) if self.default else dict(action='store_const', const=True)
        elif isinstance(self.default, tuple):
            kind = dict(nargs='+', metavar=self.metavar)
        elif self.choices:
            kind = dict(choices=(*filter(None, self.choices), *self.refused))
        else:
            kind = dict(type=type(self.default), metavar=self.metavar, nargs='+' if self.pair else None)
        parser.add_argument(self.typed, dest=self.name, help=self.help, default=None, **kind)

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words of a command line that choose its value of `values`; none for the default."""
        value = values.get(self.name, self.default)
        if not self.typed or (value == self.default and not self.stated) or not self.counts(values):
            return []
        if isinstance(value, bool):
            return [self.as_typed(value=value)]
        said = value if isinstance(value, list | tuple) else [value]
        pairs = [values[self.pair]] if self.pair else []
        return [self.typed, *(one if isinstance(one, str) else _word(one) for one in (*said, *pairs))]

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Return whether the option has an effect with the other values."""
        return not self.only_with or values.get(self.only_with[0]) == self.only_with[1]


def _word(value: Any) -> str:
    """Return a value as one word; PATTERN=P:Q of three."""
    return f'{value[0]}={":".join(value[1:])}' if isinstance(value, list | tuple) else str(value)


class Options(Mapping[str, Any]):
    """Values of declared options: a mapping, and attributes of the same names; none of them changes."""

    def __init__(self, declared: Sequence[Option], /, **values: Any) -> None:
        """Take values over; the others have their defaults. UsageError: a value of no declared option."""
        names = [option.name for option in declared]
        if unknown := sorted(values.keys() - set(names)):
            raise UsageError(f'{", ".join(unknown)}: no such option; there are {", ".join(names)}')
        self.__dict__['declared'] = tuple(declared)
        self.__dict__.update({one.name: _plain(values.get(one.name, one.default)) for one in declared})

    def __getitem__(self, name: str) -> Any:
        if name == 'declared':
            raise KeyError(name)
        return self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        return iter([option.name for option in self.declared])

    def __len__(self) -> int:
        return len(self.declared)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f'{name}: options do not change; use replace()')

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        changed = (f'{one.name}={self[one.name]!r}' for one in self.declared if self[one.name] != one.default)
        return f'Options({", ".join(changed)})'

    def replace(self, **changes: Any) -> Options:
        """Return the options with other values."""
        return Options(self.declared, **{**self, **changes})

    def check(self, where: str = '--', given: Iterable[str] | None = None) -> None:
        """Refuse unknown values, and options that have no effect with the others.

        Args:
            where: what stands before a name in the message; '--' spells it as on the command line.
            given: names of those that the user gave; by default those that are not at their default.

        Raises:
            UsageError: the message says what there is, or what goes with what.
        """
        if given is None:
            given = [one.name for one in self.declared if self[one.name] != one.default]
        known = {one.name: one for one in self.declared}
        for option in (known[name] for name in known if name in set(given)):
            value = self[option.name]
            option.check(value, where)
            if not option.counts(self):
                other, wanted = option.only_with
                goes_with = f'goes with {known[other].with_value(wanted, where)}, got {self[other]}'
                raise UsageError(f'{option.with_value(value, where)} {goes_with}')
            by, fixed = self.fixed.get(option.name, (None, value))
            if by is not None and value and value != fixed:
                why = f'{known[by].with_value(self[by], where)} is written with {fixed}; leave it out'
                raise UsageError(f'{option.with_value(value, where)}: {why}')

    @property
    def fixed(self) -> dict[str, tuple[str, Any]]:
        """Name of an option -> the option whose choice fixes it, and its value."""
        return {
            name: (one.name, value)
            for one in self.declared
            for name, value in one.fixes.get(self[one.name], {}).items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return what the metadata keep, as plain JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.items()}


def _plain(value: Any) -> Any:
    """Return a value that can be hashed: lists become tuples."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def schemas(declared: Iterable[Option]) -> dict[str, Check]:
    """Return name -> check of the value in the metadata of a file."""
    chosen = {one.name: one_of(*one.choices) for one in declared if one.choices and not one.open}
    return {one.name: chosen.get(one.name, one.schema) for one in declared}
