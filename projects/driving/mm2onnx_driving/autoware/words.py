"""Class names in the words of Autoware's nodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

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
