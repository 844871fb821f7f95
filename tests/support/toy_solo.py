"""Small models of the four SOLO heads with seeded weights, read from checkpoint files as users' are."""

from __future__ import annotations

import copy
import functools

import torch

from dev.seeded.by_name import solo_weights
from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.synthetic import coco
from mmdeploy_ext.spec.options import Options

TRACED = (128, 160)
GRIDS = [14, 12, 8, 6, 4]
SMALL = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 32,
    'model.mask_head.in_channels': 32,
    'model.mask_head.feat_channels': 32,
    'model.mask_head.stacked_convs': 1,
    'model.mask_head.num_classes': 5,
    'model.mask_head.num_grids': GRIDS,
    'model.mask_head.norm_cfg': dict(type='GN', num_groups=4),
}
SMALL_V2 = {
    **SMALL,
    'model.mask_head.mask_feature_head.feat_channels': 16,
    'model.mask_head.mask_feature_head.out_channels': 24,
    'model.mask_head.mask_feature_head.norm_cfg': dict(type='GN', num_groups=4),
}
DCN = {
    'model.backbone.depth': 50,
    'model.neck.in_channels': [32, 64, 128, 256],
    'model.backbone.dcn.type': 'DCN',
    'model.backbone.stage_with_dcn': (False, False, False, True),
    'model.mask_head.dcn_cfg.type': 'DCN',
    'model.mask_head.stacked_convs': 2,
}
HEADS = {
    'solo': ('solo/solo_r50_fpn_1x_coco.py', SMALL),
    'decoupled': ('solo/decoupled_solo_r50_fpn_1x_coco.py', SMALL),
    'decoupled_light': ('solo/decoupled_solo_light_r50_fpn_3x_coco.py', SMALL),
    'solov2': ('solov2/solov2_light_r34_fpn_3x_coco.py', SMALL_V2),
    'solov2_light_dcn': ('solov2/solov2_light_r50_dcn_fpn_3x_coco.py', {**SMALL_V2, **DCN}),
}
MASK_GAIN, KERNEL_GAIN, CLASS_GAIN = 3.0, 4.0, 3.0
"""Small heads give weak outputs; with these some hundred candidates pass, with masks of all sizes."""


def load_toy(name: str, folder, changes: dict | None = None) -> detectors.Detector:
    """Return a small model with seeded weights; `changes` are more config options."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    config, options = HEADS[name]
    options = copy.deepcopy({**options, **(changes or {})})
    cfg = load_config(mmdet_config(config), options)
    model = find_family(cfg).build(cfg)
    weights = solo_weights({key: value.shape for key, value in model.state_dict().items()})
    for key, value in weights.items():
        if key.endswith('conv_cls.weight'):
            value *= CLASS_GAIN
        if 'conv_mask_list' in key and key.endswith('weight'):
            value *= MASK_GAIN
        if key.endswith('conv_kernel.weight'):
            value *= KERNEL_GAIN
        if key.endswith('conv_cls.bias'):
            value += 2.0
    path = folder / f'{name}.pth'
    torch.save(dict(state_dict=weights), path)
    return detectors.load(mmdet_config(config), str(path), options)


@functools.cache
def picture(index: int, height: int = 150, width: int = 200):
    """Return a generated BGR picture."""
    return coco.sample(3, 'picture', index, (height, width))[0]


def prepared(detector: detectors.Detector, index: int, size: tuple[int, int] = TRACED, **shape: int):
    """Return a picture prepared for an input of a size."""
    return detectors.prepare_fixed(detector.rule, picture(index, **shape), *size)


def options_for(**changes) -> Options:
    """Return options with the traced shape."""
    return FAMILIES['solo'].choose(**{'height': TRACED[0], 'width': TRACED[1], **changes})
