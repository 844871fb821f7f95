"""Report for many configs whether they export and are proven, with seeded weights; see --help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdeploy_ext.cli.zoo_app import main
from mmdeploy_ext.core.cli import imports

if TYPE_CHECKING:
    import torch

    from mmdeploy_ext.families.base import Family

register = imports('mmdeploy_ext.families.mmdet3d_plugin', 'mmdeploy_ext.families.mmdet_plugin')


def seeded(cfg: Any, family: Family) -> torch.nn.Module:
    """Return the detector of a config with seeded weights."""
    from mmdeploy_ext.synthetic.seeded import seeded_model

    return seeded_model(cfg, family)


if __name__ == '__main__':
    sys.exit(main(register, seeded))
