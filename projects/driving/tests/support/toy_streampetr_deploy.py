"""The toy StreamPETR as a `Model`, and its exports, for tests of the tools around a streaming model."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mmcv import Config

import toy_streampetr as toy
import toy_streampetr_export as exported
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.detector import Detector
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.synthetic.drive import SyntheticDrive, synthetic_drive
from projects.configs.nuscenes_stream import image_augmentation, test_pipeline
from toy_rig import RULE


@functools.cache
def detector() -> Detector:
    """Return the seeded toy as if it came from a config and a checkpoint."""
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mm2onnx_driving.streampetr.family import StreamPetrFamily

    model = exported.model()
    model.input_sizes = (toy.NUM_CAMS, toy.HEIGHT, toy.WIDTH)
    model.rule = RULE
    image = image_augmentation((toy.HEIGHT, toy.WIDTH), (0.5, 0.6), source=RULE.source)
    cfg = Config(dict(model=toy.model_cfg(), test_pipeline=test_pipeline(image)))
    classes = tuple(f'class {label}' for label in range(toy.NUM_CLASSES))
    return Detector(
        config='toy.py',
        checkpoint='toy.pth',
        cfg_options={},
        cfg=cfg,
        family=StreamPetrFamily(),
        model=model,
        rule=RULE,
        classes=classes,
        checkpoint_sha256='d' * 64,
    )


def export(folder: Path, **options) -> list[str]:
    """Export the toy and return the paths of its files."""
    chosen = FAMILIES['streampetr'].choose(**options)
    target = folder / ('fork.onnx' if chosen.contract == 'fork' else 'deploy')
    return export_files(detector(), chosen, str(target))[0]


_FOLDERS: list[tempfile.TemporaryDirectory] = []


@functools.cache
def files(**options) -> tuple[str, ...]:
    """Return the paths of the toy's files, exported once per options and session; for reading only."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    return tuple(export(Path(_FOLDERS[-1].name), **options))


def drive(frames: int, **options) -> SyntheticDrive:
    """Return a synthetic drive for the toy."""
    return synthetic_drive(frames, RULE, **options)
