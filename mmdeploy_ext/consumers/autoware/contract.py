"""What Autoware's perception nodes would reject or read wrongly in a folder, whoever wrote it.

Three nodes: lidar_centerpoint (manifest v4.1), camera_streampetr and bevfusion. Which one a folder is for is
told by its files. What it cannot tell: whether the numbers are right. No node was run here.

Source: autowarefoundation/autoware_universe 5e12a711; CenterPoint's manifest 656cdab8.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.consumers.autoware import bevfusion_rules, centerpoint_rules, streampetr_rules
from mmdeploy_ext.core.errors import ModelFileError

if TYPE_CHECKING:
    from mmdeploy_ext.core.violations import Violation

NODES = dict(
    lidar_centerpoint=(centerpoint_rules, (centerpoint_rules.MANIFEST, *centerpoint_rules.PATTERNS)),
    camera_streampetr=(streampetr_rules, (streampetr_rules.MANIFEST, *streampetr_rules.PATTERNS)),
    bevfusion=(bevfusion_rules, bevfusion_rules.PATTERNS),
)
"""Node -> what reads its folder, and names by which a folder is known to be for it."""


def check(folder: str | Path) -> tuple[list[Violation], dict[str, Path]]:
    """Return what is wrong with a folder, and the files that were read; `node` is a file's name.

    Raises:
        ModelFileError: no such folder, one of no node or of several, or a file in it that is not ONNX.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ModelFileError(f'{folder}: no such folder; expected one that a node of Autoware loads')
    fitting = [name for name, (_, patterns) in NODES.items() if any(any(place.glob(one)) for one in patterns)]
    if len(fitting) != 1:
        wanted = '; '.join(f'{name}: {", ".join(patterns)}' for name, (_, patterns) in NODES.items())
        got = f'has files of {" and ".join(fitting)}' if fitting else 'has no file that a node would load'
        raise ModelFileError(f'{folder}: {got}; expected those of one, {wanted}')
    return NODES[fitting[0]][0].check(place)


CONTRACTS = {'autoware': check}
"""Contracts of folders, for `graph.py check-folder`."""
FILES = {'autoware': tuple(pattern for _, patterns in NODES.values() for pattern in patterns)}
"""By which a folder is known to be of a contract."""
