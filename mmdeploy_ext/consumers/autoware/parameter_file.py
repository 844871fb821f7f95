"""ROS 2 parameter files: read with the types that ROS 2 gives their values, and written. Needs PyYAML.

ROS 2 has no anchors, aliases or nested lists, a list has one type, and a plain scalar is a truth value, a
64-bit integer, a floating-point number or a text, whatever YAML calls it. Of two equal keys `yaml.safe_load`
would keep the last without a word.

Source: ros2/rcl, rcl_yaml_param_parser, src/parse.c and src/yaml_variant.c (behaviour in own words).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ModelFileError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import yaml

ANY_NODE, PARAMETERS = '/**', 'ros__parameters'
"""Keys above all parameters of a file."""
TRUE_WORDS = ('Y', 'y', 'yes', 'Yes', 'YES', 'true', 'True', 'TRUE', 'on', 'On', 'ON')
FALSE_WORDS = ('N', 'n', 'no', 'No', 'NO', 'false', 'False', 'FALSE', 'off', 'Off', 'OFF')
INTEGER = re.compile(r'[-+]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)')
REAL = re.compile(r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?')
NOT_FINITE = {'.nan': math.nan, '.inf': math.inf, '+.inf': math.inf, '-.inf': -math.inf}
NO_TEXT = re.compile(
    f'({"|".join(TRUE_WORDS + FALSE_WORDS)}|{INTEGER.pattern}|{REAL.pattern}|[-+]?[.](?i:inf|nan))$'
)
"""Words that ROS 2 takes for a text only in quotes, beside null ones."""


class ParameterFileError(ValueError):
    """A file that ROS 2 would refuse to load, or load as something else than YAML states."""


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the parameters of a file for all nodes, key -> value: nested dicts, values and lists of values.

    An empty or null value is None. A whole number that 64 bits do not hold is a float.

    Raises:
        ModelFileError: PyYAML is not installed.
        ParameterFileError: the file cannot be read, or reaches no node.
    """
    try:
        import yaml
    except ImportError as error:
        raise ModelFileError(f'{path}: reading it needs PyYAML; pip install pyyaml') from error
    try:
        text = path.read_text(encoding='utf-8')
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, 'anchor', None):
                raise _refused(event, 'an anchor or alias, which ROS 2 does not read')
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ParameterFileError(f'cannot be read: {error.strerror}') from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterFileError(f'is no YAML: {one_line(error)}') from error
    content = None if document is None else _value(document, '')
    for key in (ANY_NODE, PARAMETERS):
        if not isinstance(content, dict) or key not in content:
            raise ParameterFileError(
                f'has no {key!r}: the parameters reach no node; expected {ANY_NODE!r}, {PARAMETERS!r} below '
                f'it, and all keys below that'
            )
        content = content[key]
    return content if isinstance(content, dict) else {}


def parameter_text(parameters: Mapping[str, Any]) -> str:
    """Return the text of a file that gives all nodes these parameters."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes texts such as y and 09, too, which are texts to PyYAML, but not to ROS 2."""

    Dumper.add_implicit_resolver('!no-text', NO_TEXT, None)
    content = {ANY_NODE: {PARAMETERS: dict(parameters)}}
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=100)


def _value(node: yaml.Node, key: str) -> Any:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return _list(node, key)
    entries: dict[str, Any] = {}
    for key_node, value_node in node.value:
        name = f'{key}.{key_node.value}' if key else str(key_node.value)
        if key_node.value in entries:
            raise _refused(key_node, f'{name} is there twice; keep one of them')
        entries[key_node.value] = _value(value_node, name)
    return entries


def _list(node: yaml.SequenceNode, key: str) -> list[Any]:
    import yaml

    if not all(isinstance(entry, yaml.ScalarNode) for entry in node.value):
        raise _refused(node, f'{key} is a list of lists or mappings, which ROS 2 refuses')
    values = [_scalar(entry) for entry in node.value]
    if len({type(value) for value in values}) > 1:
        raise _refused(
            node,
            f'{key} is a list of several types, which ROS 2 refuses: write 0.0, not 0, among numbers with a '
            f'point',
        )
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style is not None or text in TRUE_WORDS:
        return text if node.style is not None else True
    if text in FALSE_WORDS:
        return False
    if text in ('', '~', 'null'):
        return None
    if text.lower() in NOT_FINITE:
        return NOT_FINITE[text.lower()]
    if INTEGER.fullmatch(text):
        digits = text.lstrip('+-')
        value = int(text, 16 if digits[:2].lower() == '0x' else 8 if digits[0] == '0' else 10)
        return value if -(2**63) <= value < 2**63 else float(value)
    return float(text) if REAL.fullmatch(text) else text


def _refused(place: yaml.Event | yaml.Node, problem: str) -> ParameterFileError:
    return ParameterFileError(f'line {place.start_mark.line + 1}: {problem}')
