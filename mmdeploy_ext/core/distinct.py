"""Renaming without loss: no two keys of a file may become one name. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_distinct(names: Iterable[tuple[object, str]]) -> None:
    """Refuse two keys that become the same name, since it is not known which of them is meant.

    Args:
        names: key of the file, and what it becomes.

    Raises:
        CheckpointError: names both keys and the name; no file named.
    """
    taken: dict[str, object] = {}
    for key, name in names:
        if name in taken:
            raise CheckpointError(
                f'{taken[name]} and {key} both become {name}; the file holds it twice. Save it again with '
                f'the one that is meant'
            )
        taken[name] = key
