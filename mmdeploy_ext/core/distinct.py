"""A check that renaming loses no entry of a checkpoint. Needs no torch."""

from collections.abc import Iterable

from mmdeploy_ext.core.errors import CheckpointError


def check_distinct(names: Iterable[tuple[object, str]]) -> None:
    """Refuse two keys that become the same name, since either of them may be meant.

    `names` are pairs of a key of the file and its new name; the CheckpointError names no file.
    """
    keys: dict[str, object] = {}
    for key, name in names:
        if name in keys:
            raise CheckpointError(
                f'{keys[name]} and {key} both become {name}; the file holds it twice. Save it again with '
                f'the one that is meant'
            )
        keys[name] = key
