"""Read a ROS 2 parameter file with the types that ROS 2 gives its values. Needs PyYAML.

ROS 2 does not read general YAML: it has no anchors, aliases or nested lists, a list has one type, and a plain
scalar is a truth value, a 64-bit integer, a floating-point number or a text, whatever YAML calls it (a date
is a text). `yaml.safe_load` would accept more and silently keep the last of two equal keys.

Source: ros2/rcl, rcl_yaml_param_parser, src/parse.c and src/yaml_variant.c (behaviour in own words).
"""

from __future__ import annotations

import math
import re
import stat
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ModelFileError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import yaml

LARGEST_FILE_BYTES = 1 << 20
"""Size of the largest file that is read; the largest published manifest has 6 kB."""
DEEPEST = 16
"""Depth of nested mappings that is read; the manifests have five."""
LONGEST_NUMBER = 64
"""Characters of the longest number; a longer word is a text, as so many digits mean nothing in 64 bits."""
TRUE_WORDS = frozenset(['Y', 'y', 'yes', 'Yes', 'YES', 'true', 'True', 'TRUE', 'on', 'On', 'ON'])
"""Words that YAML 1.1 takes for true."""
FALSE_WORDS = frozenset(['N', 'n', 'no', 'No', 'NO', 'false', 'False', 'FALSE', 'off', 'Off', 'OFF'])
"""Words that it takes for false."""
INTEGER = re.compile(r'[-+]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)')
"""Words that are whole numbers."""
REAL = re.compile(r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?')
"""Words that are numbers with a point or an exponent, and such as 09, which begins as octal numbers do."""
NOT_FINITE = {'.nan': math.nan, '.inf': math.inf, '+.inf': math.inf, '-.inf': -math.inf}
"""Word -> the number that it stands for."""
_WORDS = sorted(TRUE_WORDS | FALSE_WORDS)
NO_TEXT = re.compile(f'({"|".join(_WORDS)}|{INTEGER.pattern}|{REAL.pattern}|[-+]?[.](?i:inf|nan))$')
"""Words that ROS 2 takes for a text only in quotes, beside null ones."""
TYPE_NAMES = {bool: 'truth values', int: 'whole numbers', float: 'numbers with a point', str: 'texts'}
"""Type of a value -> its name in messages."""


class ParameterFileError(ValueError):
    """A file that ROS 2 would refuse to load or load as something else than YAML states, or too large a one.

    The message has the line, unless the file as a whole is refused.
    """


def read_parameter_file(path: Path) -> Any:
    """Return the content of a parameter file: nested dicts of truth values, numbers, texts and lists of them.

    A file of a list or a value alone gives that. An empty or null value, and the content of an empty file, is
    None. A whole number that 64 bits do not hold is a float.

    Raises:
        ModelFileError: PyYAML is not installed.
        ParameterFileError: the file cannot be read, is larger than `LARGEST_FILE_BYTES`, is no YAML, or is
            YAML that ROS 2 refuses.
    """
    try:
        import yaml
    except ImportError as error:
        raise ModelFileError(f'{path}: reading it needs PyYAML; pip install pyyaml') from error
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ParameterFileError('is no regular file')
        if status.st_size > LARGEST_FILE_BYTES:
            raise ParameterFileError(f'has {status.st_size:,} bytes, expected at most {LARGEST_FILE_BYTES:,}')
        text = path.read_text(encoding='utf-8')
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except OSError as error:
        raise ParameterFileError(f'cannot be read: {error.strerror}') from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterFileError(f'is no YAML: {one_line(error)}') from error


class _Reader:
    """Builds plain values from the events of PyYAML's parser, without recursion into what ROS 2 refuses."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self.events = events

    def document(self) -> Any:
        """Return the value of the only document of a file; None if the file is empty."""
        import yaml

        content, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refused(event, 'a second document begins here; ROS 2 reads one')
                content = self._value(next(self.events), '', 0)
        return content

    def _value(self, event: yaml.Event, key: str, depth: int) -> Any:
        import yaml

        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refused(event, f'{key or "it"} is an anchor or alias, which ROS 2 does not read')
        if depth > DEEPEST:
            raise self._refused(event, f'{key or "it"} is nested more than {DEEPEST} deep')
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(key, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(event, key)
        return _scalar(event)

    def _mapping(self, parent: str, depth: int) -> dict[str, Any]:
        import yaml

        entries: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refused(event, f'{parent or "it"} has a key that is no text')
            key = f'{parent}.{event.value}' if parent else event.value
            if event.value in entries:
                raise self._refused(event, f'{key} is there twice; keep one of them')
            entries[event.value] = self._value(next(self.events), key, depth + 1)
        return entries

    def _sequence(self, start: yaml.Event, key: str) -> list[Any]:
        import yaml

        values: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refused(
                    event, f'{key or "it"} is a list of lists or mappings, which ROS 2 refuses'
                )
            values.append(self._value(event, key, 0))
        types = {type(value) for value in values}
        if len(types) > 1:
            mixture = ' and '.join(sorted(TYPE_NAMES.get(kind, 'nothing') for kind in types))
            problem = (
                f'{key or "it"} is a list of {mixture}; ROS 2 refuses a file with a list of several types'
            )
            raise self._refused(start, f'{problem}: write 0.0, not 0, among numbers with a point')
        return values

    @staticmethod
    def _refused(event: yaml.Event, problem: str) -> ParameterFileError:
        return ParameterFileError(f'line {event.start_mark.line + 1}: {problem}')


def _scalar(event: yaml.ScalarEvent) -> Any:
    """Return a scalar with the type that ROS 2 gives it; None for an empty or null one."""
    text = event.value
    if event.style is not None or event.tag == 'tag:yaml.org,2002:str':
        return text
    if text in ('', '~', 'null'):
        return None
    if text in TRUE_WORDS or text in FALSE_WORDS:
        return text in TRUE_WORDS
    if text.lower() in NOT_FINITE:
        return NOT_FINITE[text.lower()]
    if len(text) > LONGEST_NUMBER:
        return text
    if INTEGER.fullmatch(text):
        digits, base = text.lstrip('+-'), 10
        if digits[0] == '0':
            base = 16 if digits[:2].lower() == '0x' else 8
        value = int(text, base)
        return value if -(2**63) <= value < 2**63 else float(value)
    if REAL.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    return text
