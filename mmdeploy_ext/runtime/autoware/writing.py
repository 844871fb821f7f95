"""Manifests for Autoware's nodes as texts. Needs PyYAML.

Source: autoware_universe 656cdab8 (keys and types of manifest v4.1), ObjectClassification.msg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.runtime.autoware.manifest import BELOW, NODES

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
    count = LABELS * LABELS
    return text_of(
        dict(
            allow_remapping_by_area_matrix=[0] * count,
            min_area_matrix=[0.0] * count,
            max_area_matrix=[0.0] * count,
        )
    )


def class_words(names: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """Return class names in a node's words: upper case, and its own word for motorcycles.

    Args:
        names: of a config, by label.
        known: to the node.
        where: the file and key, for the message.

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
    other = {'MOTORCYCLE': 'MOTORBIKE', 'MOTORBIKE': 'MOTORCYCLE'}
    words = [name.upper() for name in names]
    words = [word if word in known else other.get(word, word) for word in words]
    words = [word if word in known else name.upper() for name, word in zip(names, words, strict=True)]
    return words, [name for name, word in zip(names, words, strict=True) if word not in known]
