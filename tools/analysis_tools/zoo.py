"""Report for many configs whether they export and are proven, with seeded weights; see --help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    import torch

    from mmdeploy_ext.families.base import Family


def register() -> None:
    """Import the projects whose families can be exported."""
    import projects.mmdet3d_plugin
    import projects.mmdet_plugin  # noqa: F401


def seeded(cfg: Any, family: Family) -> torch.nn.Module:
    """Return the detector of a config with seeded weights."""
    from projects.toydata.seeded import seeded_model

    return seeded_model(cfg, family)


if __name__ == '__main__':
    from mmdeploy_ext.apps.zoo_app import main

    sys.exit(main(register, seeded))
