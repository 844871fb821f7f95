"""A small seeded Sparse4D, and its exports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.synthetic.seeded import write_seeded

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = 'projects/configs/Sparse4D/sparse4d_toy.py'


def load(folder: Path) -> deploy.Deployment:
    """Return the toy with seeded weights, which are written into a folder."""
    path = folder / 'toy.pth'
    write_seeded(CONFIG, str(path))
    return deploy.load(CONFIG, str(path))


def export(deployment: deploy.Deployment, folder: Path, **options: str) -> list[str]:
    """Export the toy by options of its family; return the paths of its files."""
    chosen = deploy.resolve_opset(deployment.family.choose(opset=0, **options), deployment.model)
    return export_files(deployment, chosen, str(folder / 'sparse4d'))[0]
