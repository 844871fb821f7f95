"""Dataclasses of numbers, texts and tuples of them: to plain JSON types and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


class Plain:
    """The base class of such a dataclass."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, as the metadata of files keep them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_json` was of, also after a round through JSON text."""
        return cls(**{key: tuple(one) if isinstance(one, list) else one for key, one in content.items()})
