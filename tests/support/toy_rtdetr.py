"""A small RT-DETR with seeded weights, read from a checkpoint file, and files exported from it."""

from __future__ import annotations

from pathlib import Path

import torch

from dev.seeded.by_name import rtdetr_weights
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.runtime.preprocess.pictures import read_image

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / 'configs/demo/rtdetr_toy.py')
PICTURE = REPO / 'demo/toy.jpg'


def write_checkpoint(path: Path, config: str = CONFIG, overrides: dict | None = None) -> str:
    """Write a checkpoint with seeded weights for a config."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    cfg = load_config(config, overrides)
    with torch.device('meta'):
        shapes = {key: tuple(value.shape) for key, value in find_family(cfg).build(cfg).state_dict().items()}
    torch.save({'state_dict': rtdetr_weights(shapes), 'meta': {}}, path)
    return str(path)


def load_toy(folder: Path, overrides: dict | None = None, config: str = CONFIG) -> detectors.Detector:
    """Return the seeded model of a config."""
    checkpoint = write_checkpoint(folder / 'seeded.pth', config, overrides)
    return detectors.load(config, checkpoint, overrides)


def export_toy(detector: detectors.Detector, path: Path, **options) -> str:
    """Export, dynamic unless told otherwise, to `path`."""
    given = {'dynamic': True, 'opset': 17, 'height': 192, 'width': 256, **options}
    options = detector.family.choose(**given)
    options.check()
    detectors.check_picture_options(options, detector.cfg, detector.family, detector.model)
    picture = detectors.prepare_fixed(detector.rule, read_image(PICTURE), options.height, options.width)
    export_files(detector, options, str(path), [picture])
    return str(path)
