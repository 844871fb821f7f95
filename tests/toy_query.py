"""Toys of detectors of queries: mmdet's heads, a few layers deep, on the backbone of the Mask R-CNN toy."""

import copy
import dataclasses
import functools

import numpy as np

import projects.mmdet_plugin  # noqa: F401
from mmdeploy_ext.core.config import load_config, mmdet_config
from mmdeploy_ext.families.base import FAMILIES, find_family
from projects.toydata.seeded import seeded_model
from toy_two_stage import CONFIG, run_stages
from toy_two_stage import images as less_padded

__all__ = ['KINDS', 'SIZE', 'images', 'options_of', 'run_stages', 'seeded', 'toy']
DEFORMABLE = 'deformable_detr/deformable_detr_{}r50_16x2_50e_coco.py'
KINDS = dict(
    detr='detr/detr_r50_8x2_150e_coco.py',
    plain=DEFORMABLE.format(''),
    refine=DEFORMABLE.format('refine_'),
    two_stage=DEFORMABLE.format('twostage_refine_'),
)
SIZE = (192, 256)
WIDTHS = dict(detr=32, plain=32, refine=32, two_stage=256)
"""Of embeddings; the encoding of proposals takes 256."""


def toy(kind='plain', **test_cfg):
    """Return the config of a toy; `test_cfg` replaces entries of its own."""
    cfg = load_config(mmdet_config(KINDS[kind]))
    model, small = cfg.model, load_config(CONFIG).model
    own, width = model.backbone.out_indices, WIDTHS[kind]
    model.backbone = copy.deepcopy(small.backbone)
    model.backbone.pop('init_cfg', None)
    model.backbone.out_indices = own
    head = model.bbox_head
    head.update(num_classes=6, in_channels=128)
    head.positional_encoding.num_feats = width // 2
    if kind == 'detr':
        head.num_query = 60
    else:
        model.neck.update(in_channels=[32, 64, 128], out_channels=width)
        model.neck.norm_cfg.num_groups = 8
        head.num_query = 60
        if kind == 'two_stage':
            head.transformer.two_stage_num_proposals = 60
    for part in ('encoder', 'decoder'):
        stack = head.transformer[part]
        stack.num_layers = 2
        layer = stack.transformerlayers
        layer.feedforward_channels = 64
        layer.ffn_cfgs = dict(type='FFN', embed_dims=width, feedforward_channels=64)
        attentions = layer.attn_cfgs if isinstance(layer.attn_cfgs, list) else [layer.attn_cfgs]
        for one in attentions:
            one.update(embed_dims=width, num_heads=4)
    model.test_cfg.update(max_per_img=50, **test_cfg)
    return cfg


@functools.cache
def seeded(kind='plain'):
    """Return a toy with seeded weights; tests that change it work on a copy."""
    cfg = toy(kind)
    return seeded_model(cfg, find_family(cfg)).eval()


def images(count=2, size=SIZE, seed=5):
    """Return prepared pictures whose contents and scales differ, padded by more than a stride."""
    found = []
    for index, one in enumerate(less_padded(count, size, seed)):
        height, width = one.img_shape[0] - 50 * (index % 2), one.img_shape[1] - 70 * ((index + 1) % 2)
        tensor = np.zeros_like(one.tensor)
        tensor[:, :height, :width] = one.tensor[:, :height, :width]
        original = tuple(
            round(side / ratio) for side, ratio in zip((height, width), one.scale_factor[1::-1], strict=True)
        )
        found.append(dataclasses.replace(one, tensor=tensor, img_shape=(height, width), ori_shape=original))
    return found


def options_of(size=SIZE, **chosen):
    values = dict(height=size[0], width=size[1], opset=17) | chosen
    return FAMILIES['query'].choose(**values)
