"""What a proof claims besides that a file is the model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a verdict is about.

    Attributes:
        edited: the files were edited on purpose: only outputs decide.
        written: the export has just written the files: graphs are not compared.
        asked: option -> value that the file must have been exported with.
        library: 'installed': compare with the installed library where a repository's copy did not run; None:
            such a file is not proven.
        timed: whether the verdict has times.
        strict: whether code that a graph cannot show is a failure.
        settings: of one kind of samples: `picture_files` and `cache` of pictures, `bars` of a drive,
            `ranges`, `max_voxels` and `node_list` of a backbone.
    """

    edited: bool = False
    written: bool = False
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    library: str | None = None
    timed: bool = True
    strict: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
