"""Manifests for Autoware's nodes as texts. Needs PyYAML.

Source: autoware_universe 656cdab8 (keys and types of manifest v4.1), ObjectClassification.msg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.consumers.autoware.manifest import BELOW, NODES, word_of
from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LABELS = 8
"""Of the remapper's matrices: UNKNOWN to PEDESTRIAN."""


def text_of(parameters: Mapping[str, Any]) -> str:
    """Return a ROS 2 parameter file."""
    import yaml

    return yaml.safe_dump(
        {NODES: {BELOW: dict(parameters)}}, sort_keys=False, default_flow_style=None, width=100
    )


def remapper_text() -> str:
    """Return a remapper that changes no class."""
    zeros = [0.0] * LABELS**2
    allowed = dict(allow_remapping_by_area_matrix=[0] * LABELS**2)
    return text_of(dict(allowed, min_area_matrix=zeros, max_area_matrix=list(zeros)))


def class_words(names: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """Return the class names of a file and key in a node's words: upper case, and its own for motorcycles.

    Raises:
        ConfigError: a class that the node would publish as UNKNOWN.
    """
    words, lost = known_words(names, known)
    if lost:
        raise ConfigError(
            f'{where} has {", ".join(lost)}, which the node publishes as UNKNOWN; it knows {", ".join(known)}'
            f': rename or leave out the classes'
        )
    return words


def known_words(names: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return class names in a node's words, see `class_words`, and those that it does not know."""
    words = [word_of(name, known) for name in names]
    lost = [name for name, word in zip(names, words, strict=True) if not word]
    return [word or name.upper() for name, word in zip(names, words, strict=True)], lost
