"""The toys of FCOS3D, PGD, SMOKE and ImVoxelNet with seeded weights."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from dev.seeded.weights import SCENE_SHAPES
from image_checks import seeded_detector
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.synthetic.scene import make_scene

SIZE = (96, 320)

CONFIGS = {kind: f'projects/configs/Monocular/{kind}_toy.py' for kind in ('fcos3d', 'pgd', 'smoke')}
CONFIGS |= dict.fromkeys(('imvoxelnet', 'imvoxelnet_old'), 'projects/configs/ImVoxelNet/imvoxelnet_toy.py')


def toy(kind='smoke'):
    """Return the config of a toy; the heads of FCOS3D and PGD have two levels."""
    cfg = load_config(CONFIGS[kind])
    if kind == 'imvoxelnet_old':
        cfg.box_convention = '0.17'
    if kind in ('fcos3d', 'pgd'):
        backbone, neck, head = cfg.model.backbone, cfg.model.neck, cfg.model.bbox_head
        stages, (first, *_) = neck.start_level + 2, head.regress_ranges
        backbone.update(num_stages=stages, strides=(1, 2, 2)[:stages], dilations=(1,) * stages)
        backbone.out_indices = tuple(range(stages))
        neck.update(in_channels=neck.in_channels[:stages], num_outs=2)
        head.update(strides=head.strides[:2], regress_ranges=(first, (first[1], 1e8)))
    return cfg


@functools.cache
def seeded(kind):
    """Return the detector of a toy with seeded weights."""
    return seeded_detector(toy(kind), CONFIGS[kind])


def picture(seed=3, height=100, width=300):
    """Return the title and the pixels of a generated picture."""
    return f'scene{seed}.jpg', make_scene(np.random.default_rng(seed), height, width, SCENE_SHAPES)[0]


def options(kind, **values):
    """Return the options of an export, complete."""
    detector = seeded(kind)
    values = dict(dict(opset=0, height=SIZE[0], width=SIZE[1]), **values)
    chosen = detector.family.choose(**values)
    return detectors.check_picture_options(chosen, detector.cfg, detector.family, detector.model)


@functools.cache
def exported(kind, **values):
    """Export a toy once per session and return the path of its file."""
    detector, chosen = seeded(kind), options(kind, **values)
    traced = [detectors.prepare_fixed(detector.rule, picture()[1], *SIZE)]
    path = Path(tempfile.mkdtemp(prefix='monocular_')) / 'm.onnx'
    (file,), _ = export_files(detector, chosen, str(path), traced)
    return file
