"""Two-stage toys: the model of configs/demo/mask_rcnn_toy.py with other heads, and seeded weights."""

import functools

import numpy as np

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dev.seeded.weights import seeded_scene
from image_checks import seeded_toy
from made_once import copied, made_once
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from toy_atss import REPO
from two_stage_parts import PARTS, narrow

CONFIG = f'{REPO}/configs/demo/mask_rcnn_toy.py'
SIZE = (128, 192)


@copied
def toy(kind='faster'):
    """Return the config of a toy."""
    cfg = load_config(CONFIG)
    model = cfg.model
    del model.backbone['init_cfg']
    narrow(model)
    PARTS[kind](model)
    if 'mask_head' in model.get('roi_head', ()):
        model.test_cfg.rcnn.max_per_img = 24  # masks take most of the time
        model.test_cfg.rcnn.mask_thr_binary = 0.4
    return cfg


def image_branch():
    """Return the config of a toy of ImVoteNet's first stage: the Faster R-CNN by other names."""
    cfg = toy()
    parts = {f'img_{key}': cfg.model[key] for key in ('backbone', 'neck', 'rpn_head', 'roi_head')}
    test_cfg = {f'img_{key}': value for key, value in cfg.model.test_cfg.items()}
    cfg.model = dict(type='ImVoteNet', test_cfg=test_cfg, **parts)
    return cfg


def write_config(cfg, path):
    """Write a config as Python, which keeps its tuples; returns the path."""
    content = cfg._cfg_dict.to_dict()
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in content.items()))
    return str(path)


@made_once
def seeded(kind='faster'):
    """Return a toy with seeded weights; tests that change it work on a copy."""
    cfg = toy(kind)
    return seeded_toy(cfg, find_family(cfg))


@functools.cache
def family_of(kind):
    return find_family(toy(kind))


def images(count=2, size=SIZE, seed=5):
    """Return prepared pictures whose contents and scales differ.

    Sides of contents are no multiples of 7: a region as large has cells of no whole sides, whose samples mmcv
    counts by rounding up.
    """
    found = []
    for index in range(count):
        content = (size[0] - 12 * (index % 2), size[1] - 20 * ((index + 1) % 2))
        tensor = seeded_scene(seed + index, *size)[0].contiguous()  # mmcv's RoIAlign reads strides wrong
        tensor[:, content[0] :] = 0
        tensor[:, :, content[1] :] = 0
        scale = np.array([1.5, 1.25, 1.5, 1.25], np.float32) if index % 2 else np.ones(4, np.float32)
        original = tuple(round(side / ratio) for side, ratio in zip(content, scale[1::-1], strict=True))
        found.append(PreparedImage(tensor.numpy(), content, scale, original))
    return found


def options_of(kind, size=SIZE, **chosen):
    values = dict(height=size[0], width=size[1], opset=17) | chosen
    return family_of(kind).choose(**values)
