"""mmcv's registries, and the types that a config names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def registries(packages: Collection[str] = ()) -> Iterator[Any]:
    """Yield the registries in imported modules, of some top-level packages alone if any are named.

    One that several modules have is yielded several times.
    """
    from mmcv.utils import Registry

    for name, module in list(sys.modules.items()):
        if packages and name.partition('.')[0] not in packages:
            continue
        for value in list(vars(module).values()):
            if issubclass(type(value), Registry):  # isinstance() asks old torch attributes, which warn
                yield value


def types_of(part: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Yield the key and the name of each `type` in nested values of a config: `model.neck.type`, `FPN`.

    `prefix` is the key of `part`.
    """
    start = f'{prefix}.' if prefix else ''
    if isinstance(part, dict):
        if isinstance(part.get('type'), str):
            yield f'{start}type', part['type']
        for key, value in part.items():
            yield from types_of(value, f'{start}{key}')
    elif isinstance(part, list | tuple):
        for index, value in enumerate(part):
            yield from types_of(value, f'{start}{index}')
