"""Renaming without loss: no two keys of a file may become one name. Needs no torch."""

from collections.abc import Iterable

from mmdeploy_ext.core.errors import CheckpointError


def check_distinct(names: Iterable[tuple[object, str]]) -> None:
    """Refuse two keys that become the same name, since it is not known which of them is meant.

    `names` are a key of the file, and what it becomes; the CheckpointError names no file.
    """
    taken: dict[str, object] = {}
    for key, name in names:
        if name in taken:
            raise CheckpointError(
                f'{taken[name]} and {key} both become {name}; the file holds it twice. Save it again with '
                f'the one that is meant'
            )
        taken[name] = key
