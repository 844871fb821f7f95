"""Claims of a proof besides that a file is the model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Claims:
    """Claims of a verdict.

    Attributes:
        edited: files edited on purpose: only outputs decide.
        written: files just exported: graphs are not compared.
        asked: option -> required value of the file's export.
        library: 'installed': compare with the installed library if a repository's copy did not run; None:
            such a file is not proven.
        timed: whether the verdict has times.
        strict: whether code outside the graph is a failure.
        settings: per kind of samples: `picture_files` of images, `bars` of a drive,
            `ranges`, `max_voxels` and `node_list` of a backbone.
    """

    edited: bool = False
    written: bool = False
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    library: str | None = None
    timed: bool = True
    strict: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
