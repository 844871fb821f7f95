"""The trained toy ATSS, files exported from it, and the other trained toys of configs/demo."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.runtime.preprocess.pictures import read_image

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / 'configs/demo/atss_toy.py')
CHECKPOINT = str(REPO / 'demo/checkpoints/atss_toy.pth')
PICTURE = REPO / 'demo/toy.jpg'
SHIPPED = REPO / 'demo/atss_toy.onnx'
"""What the current code exports of the toy, any size: tests/demo/test_demo_model.py."""
_FOLDERS: list[tempfile.TemporaryDirectory] = []


def load_demo(name: str, changes: dict | None = None, checkpoint: Path | None = None) -> detectors.Detector:
    """Return a trained toy of configs/demo, with other settings or weights if they are given."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    path = checkpoint or REPO / f'demo/checkpoints/{name}_toy.pth'
    return detectors.load(str(REPO / f'configs/demo/{name}_toy.py'), str(path), changes or {})


def load_toy() -> detectors.Detector:
    """Return the trained toy model."""
    return load_demo('atss')


def export_toy(detector: detectors.Detector, path: Path, **options) -> str:
    """Export a toy of pictures, of any size unless told otherwise, to `path`."""
    given = {'dynamic': True, 'opset': 17, 'height': 256, 'width': 320, **options}
    options = detector.family.choose(**given)
    picture = detectors.prepare_fixed(detector.rule, read_image(PICTURE), options.height, options.width)
    export_files(detector, options, str(path), [picture])
    return str(path)


@functools.cache
def toy_file(form: str = 'full') -> str:
    """Return the path of the toy's file of a form, of any size; read it only.

    The shipped one is taken, others are exported once per session.
    """
    if form == 'full':
        return str(SHIPPED)
    _FOLDERS.append(tempfile.TemporaryDirectory())
    path = Path(_FOLDERS[-1].name) / f'{form}.onnx'
    return export_toy(load_toy(), path, form=form, height=128, width=160)
