"""Shared parts of the contracts of Autoware's nodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from mm2onnx_driving.autoware.nodes import REMAPPER, REMAPPER_LABELS
from mm2onnx_driving.autoware.parameter_file import parameter_text
from mmdeploy_ext.families.contracts import Contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mm2onnx_driving.autoware.nodes import Node


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
