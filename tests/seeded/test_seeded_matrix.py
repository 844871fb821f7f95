"""Seeded weights of one-stage configs of the installed mmdet: enough is found, and rounding stays small.

One config of each detector, backbone, neck and head: `make zoo` tells of every config what is found in it.
"""

import functools
from pathlib import Path

import mmdet
import pytest

from dev.seeded.dense import build_student, calibration_of, is_supported
from dev.seeded.weights import fill_seeded, normalised_photograph
from dev.zoo import configs
from mmdeploy_ext.base.config import load_config
from seeded_results import CALM, amplified, find

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1200)]
CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
FOLDERS = [
    'atss', 'autoassign', 'centernet', 'ddod', 'dyhead', 'efficientnet', 'fcos', 'foveabox', 'fpg',
    'free_anchor', 'fsaf', 'gfl', 'ghm', 'hrnet', 'lad', 'ld', 'legacy_1.x', 'libra_rcnn', 'nas_fcos',
    'nas_fpn', 'objects365', 'openimages', 'paa', 'pascal_voc', 'pisa', 'pvt', 'regnet', 'reppoints',
    'resnet_strikes_back', 'retinanet', 'sabl', 'ssd', 'swin', 'tood', 'vfnet', 'wider_face', 'yolo',
    'yolof', 'yolox',
]  # fmt: skip
NAMES = [
    path.relative_to(CONFIGS).as_posix() for name in FOLDERS for path in sorted((CONFIGS / name).glob('*.py'))
]


@functools.cache
def firsts() -> dict[tuple[str, ...], str]:
    """Return the first config of each combination of parts."""
    found = configs.read_configs([CONFIGS / name for name in reversed(NAMES)])
    return {tuple(config.parts.values()): config.name for config in found if config is not None}


@pytest.mark.parametrize('name', NAMES)
def test_every_combination_of_parts_finds_enough(name):
    (config,) = configs.read_configs([CONFIGS / name])
    if config is None or (first := firsts()[tuple(config.parts.values())]) != name:
        pytest.skip('no detector' if config is None else f'has the parts of {first}')
    cfg = load_config(str(CONFIGS / name))
    if 'bbox_head' not in (cfg.get('model') or {}):
        pytest.skip('no one-stage detector')
    model = build_student(cfg)
    if not is_supported(model.bbox_head):
        pytest.skip(f'{type(model.bbox_head).__name__} has no rule yet')
    size = calibration_of(model).size
    size = (320, 448) if size == (320, 416) else size
    fill_seeded(model, 0, *normalised_photograph(cfg))
    for found in find(model, cfg, *size):
        assert len(found.rows) >= 20
        assert len(set(found.scores)) >= len(found.rows) * 0.9
        assert found.classes >= min(3, model.bbox_head.num_classes)
        assert found.rows[:, :4].std(0).min() > 5
    assert amplified(model, cfg, *size) < CALM
