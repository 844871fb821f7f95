"""Shared parts of the contracts of Autoware's nodes."""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING, Any, ClassVar

from mm2onnx_driving.autoware.nodes import REMAPPER, REMAPPER_LABELS
from mmdeploy_ext.base.errors import ModelFileError, one_line
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.families.contracts import Contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mm2onnx_driving.autoware.nodes import Node


# Parameter files of ROS 2, which read YAML unlike PyYAML. Needs PyYAML.
#
# Source: ros2/rcl, rcl_yaml_param_parser, src/parse.c and src/yaml_variant.c (behaviour in own words).


ANY_NODE, PARAMETERS = '/**', 'ros__parameters'
"""Keys above all parameters of a file."""
EXPONENT = re.compile(r'[-+]?[0-9]+([.][0-9]*)?[eE][-+]?[0-9]+$')
"""Numbers such as 1e5, which PyYAML reads as texts."""


class ParameterFileError(ValueError):
    """A file that ROS 2 would not load, or load unlike YAML."""


def read_parameters(path: Path) -> dict[str, Any]:
    """Return the parameters of a file for all nodes, nested."""
    try:
        import yaml
    except ImportError as error:
        raise ModelFileError(f'{path}: PyYAML is not installed; run pip install pyyaml') from error
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), Loader=_loader())
    except OSError as error:
        raise ParameterFileError(f'cannot be read: {error.strerror}') from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterFileError(f'is not YAML: {one_line(error)}') from error
    for key in (ANY_NODE, PARAMETERS):
        if not isinstance(content, dict) or key not in content:
            raise ParameterFileError(
                f'has no {key!r}: no node would read the parameters; expected {ANY_NODE!r}, '
                f'{PARAMETERS!r} below it, and all keys below that'
            )
        content = content[key]
    return content if isinstance(content, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file of a model's own parameters."""
    try:
        content = parse_json(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ParameterFileError(f'cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise ParameterFileError(f'is not JSON: {one_line(error)}') from error
    return content if isinstance(content, dict) else {}


def parameter_text(parameters: Mapping[str, Any]) -> str:
    """Return the text of a file with parameters for all nodes."""
    import yaml

    content = {ANY_NODE: {PARAMETERS: dict(parameters)}}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)


@functools.cache
def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if event.anchor:
                raise _refused(event, 'an anchor or alias, which ROS 2 does not support')
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise _refused(node, f'{twice[0]} appears twice; keep one')
            return super().construct_mapping(node, deep)

        def construct_sequence(self, node: Any, deep: bool = False) -> list[Any]:
            values = super().construct_sequence(node, deep)
            if any(isinstance(value, list | dict) for value in values):
                raise _refused(node, 'a list of lists or mappings, which ROS 2 does not accept')
            if len({type(value) for value in values}) > 1:
                raise _refused(
                    node,
                    'a list of several types, which ROS 2 does not accept: next to decimal numbers write '
                    '0.0, not 0',
                )
            return values

    Loader.add_implicit_resolver('tag:yaml.org,2002:float', EXPONENT, list('-+0123456789'))
    return Loader


def _refused(place: Any, problem: str) -> ParameterFileError:
    return ParameterFileError(f'line {place.start_mark.line + 1}: {problem}')


# ---- class names in the words of the nodes


logger = logging.getLogger(__name__)
OTHER_WORD = dict(MOTORBIKE='MOTORCYCLE', MOTORCYCLE='MOTORBIKE')
"""Each node has one of the two words."""


def word_of(name: str, words: Sequence[str]) -> str:
    """Return a class name in a node's words, which are all upper or all lower case, or ''."""
    upper = name.upper()
    known = {word.upper(): word for word in words}
    return next((known[word] for word in (upper, OTHER_WORD.get(upper, '')) if word in known), '')


def in_words_of(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return class names in a node's words (else in the case of these), and the names without a word."""
    cased = str.upper if all(word.isupper() for word in words) else str.lower
    translated = [word_of(name, words) or cased(name) for name in names]
    return translated, [name for name in names if not word_of(name, words)]


def published(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return `in_words_of`; names without a word are logged."""
    translated, unknown = in_words_of(words, names)
    if unknown:
        logger.warning('%s: the node publishes these classes as UNKNOWN', ', '.join(unknown))
    return translated


# ---- files


class AutowareContract(Contract):
    node: ClassVar[Node]
    used_by = 'check {folder}'

    @property
    def files(self) -> tuple[str, ...]:
        return self.node.graphs


def companion_texts(node: Node, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return file name -> text of a manifest and, if needed, a remapper without changes."""
    texts = {node.manifest: parameter_text(parameters)}
    if node.remapper:
        count = REMAPPER_LABELS**2
        matrices = dict(min_area_matrix=[0.0] * count, max_area_matrix=[0.0] * count)
        texts[REMAPPER] = parameter_text(dict(allow_remapping_by_area_matrix=[0] * count, **matrices))
    return texts
