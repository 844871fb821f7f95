"""A check that renaming loses no entry of a checkpoint. Needs no torch."""

from collections.abc import Iterable

from mmdeploy_ext.core.errors import CheckpointError


def check_distinct(renames: Iterable[tuple[object, str]]) -> None:
    """Refuse two keys that become the same name, since either of them may be meant.

    `renames` are (key in the file, its new name) of all entries.

    Raises:
        CheckpointError: two keys become one name; the message has both keys, but not the name of the file.
    """
    keys: dict[str, object] = {}
    for key, name in renames:
        if name in keys:
            raise CheckpointError(
                f'{keys[name]} and {key} both become {name}; the file holds it twice. Save it again with '
                f'the one that is meant'
            )
        keys[name] = key
