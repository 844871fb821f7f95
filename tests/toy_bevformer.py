"""A small seeded BEVFormer, and its export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.synthetic.seeded import write_seeded

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = 'projects/configs/BEVFormer/bevformer_toy.py'


def load(folder: Path) -> deploy.Deployment:
    """Return the toy with seeded weights, which are written into a folder."""
    path = folder / 'toy.pth'
    write_seeded(CONFIG, str(path))
    return deploy.load(CONFIG, str(path))


def export(deployment: deploy.Deployment, folder: Path, **options: Any) -> list[str]:
    """Export the toy with options and return the path of its file, in a list."""
    options = deploy.resolve_opset(deployment.family.choose(opset=0, **options), deployment.model)
    return export_files(deployment, options, str(folder / 'bevformer'))[0]
