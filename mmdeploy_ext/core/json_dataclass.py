"""Dataclasses of numbers, texts and tuples of them that become plain JSON types and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


class JsonDataclass:
    """The base class of a dataclass whose fields are numbers, texts, None, dicts, or tuples of them.

    A class with fields that are dataclasses has a `from_json` of its own, which rebuilds them.
    """

    def to_json(self) -> dict[str, Any]:
        """Return field -> value, in plain JSON types but for tuples; for the metadata of a file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild an object from `to_json`, also after JSON text has made lists of its tuples.

        A list becomes a tuple, lists in it stay lists. TypeError: a field without a default is missing, or a
        key is no field.
        """
        return cls(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
        )
