"""What Autoware's perception nodes would reject or read wrongly in a folder, whoever wrote it.

There are four nodes: lidar_centerpoint (manifest v4.1), camera_streampetr, bevfusion and tensorrt_bevformer;
the files of a folder tell for which of them it is.
What the check cannot tell: whether the numbers are right. No node was run here.

Source: autowarefoundation/autoware_universe 5e12a711; CenterPoint's manifest 656cdab8.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.consumers.autoware import (
    bevformer_rules,
    bevfusion_rules,
    centerpoint_rules,
    streampetr_rules,
)
from mmdeploy_ext.core.errors import ModelFileError

if TYPE_CHECKING:
    from mmdeploy_ext.core.violations import Violation

NODES = dict(
    lidar_centerpoint=(centerpoint_rules, (centerpoint_rules.MANIFEST, *centerpoint_rules.PATTERNS)),
    camera_streampetr=(streampetr_rules, (streampetr_rules.MANIFEST, *streampetr_rules.PATTERNS)),
    bevfusion=(bevfusion_rules, bevfusion_rules.PATTERNS),
    tensorrt_bevformer=(bevformer_rules, (bevformer_rules.MANIFEST, *bevformer_rules.PATTERNS)),
)
"""Node -> module that checks its folder, and patterns of files by which a folder is recognised."""


def check(folder: str | Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return the violations in a folder, and file name -> path of those of the node's files that are there.

    The `node` of a violation is the name of the file that it is in.

    Raises:
        ModelFileError: no such folder, one of no node or of several, or PyYAML is not installed. A file that
            cannot be read is a violation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        got = 'is a file' if folder.exists() else 'no such folder'
        raise ModelFileError(f'{folder}: {got}; expected a folder that a node of Autoware loads')
    names = [
        name
        for name, (_, patterns) in NODES.items()
        if any(path for pattern in patterns for path in folder.glob(pattern))
    ]
    if len(names) != 1:
        expected = '; '.join(f'{name}: {", ".join(patterns)}' for name, (_, patterns) in NODES.items())
        got = f'has files of {" and ".join(names)}' if names else 'has no file that a node would load'
        raise ModelFileError(f'{folder}: {got}; expected those of one, {expected}')
    rules, _ = NODES[names[0]]
    return rules.check(folder)


CONTRACTS = {'autoware': check}
"""Contracts of folders, for `graph.py check-folder`."""
FILES = {'autoware': tuple(pattern for _, patterns in NODES.values() for pattern in patterns)}
"""Patterns of files by which a folder is recognised as one of a contract."""
