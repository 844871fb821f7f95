"""The trained toy ATSS and files exported from it, shared by the tests of the whole chain."""

from __future__ import annotations

from pathlib import Path

from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.preprocess.pictures import read_image

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / 'configs/demo/atss_toy.py')
CHECKPOINT = str(REPO / 'demo/checkpoints/atss_toy.pth')
PICTURE = REPO / 'demo/toy.jpg'


def load_toy() -> deploy.Model:
    """Return the trained toy model."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    return deploy.load(CONFIG, CHECKPOINT)


def export_toy(deployment: deploy.Model, path: Path, **options) -> str:
    """Export the toy model, dynamic unless told otherwise, to `path`."""
    given = {'dynamic': True, 'opset': 17, 'height': 256, 'width': 320, **options}
    options = deployment.family.choose(**given)
    picture = deploy.prepare_fixed(deployment.rule, read_image(PICTURE), options.height, options.width)
    export_files(deployment, options, str(path), [picture])
    return str(path)
