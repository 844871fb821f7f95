"""Toys of detectors of queries: mmdet's heads, a few layers deep, on the backbone of the Mask R-CNN toy."""

import dataclasses
import functools

import numpy as np

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from image_checks import seeded_toy
from made_once import copied, made_once
from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.families import detector as deploy
from mmdeploy_ext.families.base import FAMILIES, find_family
from toy_atss import REPO
from toy_two_stage import CONFIG
from toy_two_stage import images as less_padded

DEFORMABLE = 'deformable_detr/deformable_detr_{}r50_16x2_50e_coco.py'
KINDS = dict(
    detr='detr/detr_r50_8x2_150e_coco.py',
    plain=DEFORMABLE.format(''),
    refine=DEFORMABLE.format('refine_'),
)
MASKS = dict(
    maskformer='maskformer/maskformer_r50_mstrain_16x1_75e_coco.py',
    instances='mask2former/mask2former_r50_lsj_8x2_50e_coco.py',
    panoptic='mask2former/mask2former_r50_lsj_8x2_50e_coco-panoptic.py',
)
REGIONS = dict(
    regions='sparse_rcnn/sparse_rcnn_r50_fpn_1x_coco.py',
    regions_masks='queryinst/queryinst_r50_fpn_1x_coco.py',
)
SIZE = (192, 256)
WIDTH = 32
"""Of embeddings. The encoding of proposals of the kind 'two_stage' takes 256: it is the trained toy."""
TRAINED = f'{REPO}/configs/demo/deformable_detr_toy.py', f'{REPO}/demo/checkpoints/deformable_detr_toy.pth'


@functools.cache
def family_of(kind):
    return find_family(toy(kind))


def small_backbone(**changes):
    """Return the config of the Mask R-CNN toy's backbone."""
    backbone = load_config(CONFIG).model.backbone
    del backbone['init_cfg']
    backbone.update(changes)
    return backbone


@copied
def toy(kind='plain'):
    """Return the config of a toy."""
    if kind == 'two_stage':
        return load_config(TRAINED[0])
    if kind in MASKS:
        return mask_toy(kind)
    if kind in REGIONS:
        return region_toy(kind)
    cfg = load_config(mmdet_config(KINDS[kind]))
    model = cfg.model
    model.backbone = small_backbone(out_indices=model.backbone.out_indices)
    head = model.bbox_head
    head.update(num_classes=6, in_channels=128)
    head.positional_encoding.num_feats = WIDTH // 2
    head.num_query = 60
    if kind != 'detr':
        model.neck.update(in_channels=[32, 64, 128], out_channels=WIDTH)
        model.neck.norm_cfg.num_groups = 8
    for part, depth in (('encoder', 1), ('decoder', 2)):
        stack = head.transformer[part]
        stack.num_layers = depth
        layer = stack.transformerlayers
        layer.feedforward_channels = 64
        layer.ffn_cfgs = dict(type='FFN', embed_dims=WIDTH, feedforward_channels=64)
        attentions = layer.attn_cfgs if isinstance(layer.attn_cfgs, list) else [layer.attn_cfgs]
        for one in attentions:
            one.update(embed_dims=WIDTH, num_heads=4)
    model.test_cfg.max_per_img = 50
    return cfg


def mask_toy(kind):
    """Return the config of a toy of Mask2Former, with or without classes of stuff."""
    cfg = load_config(mmdet_config(MASKS[kind]))
    model = cfg.model
    model.backbone = small_backbone()
    things, stuff = (5, 1) if kind == 'instances' else (4, 2)
    for key in ('panoptic_head', 'panoptic_fusion_head'):
        model[key].update(num_things_classes=things, num_stuff_classes=stuff)
    head = model.panoptic_head
    head.loss_cls.class_weight = [1.0] * 6 + [0.1]
    head.update(in_channels=[16, 32, 64, 128], feat_channels=32, out_channels=32, num_queries=40)
    pixels, decoder = head.pixel_decoder, head.transformer_decoder
    pixels.norm_cfg.num_groups = 8
    for encoding in (head.positional_encoding, pixels.positional_encoding):
        encoding.num_feats = 16
    for stack, depth in ((pixels.encoder, 1), (decoder, 4 if kind != 'maskformer' else 2)):
        stack.num_layers = depth
        layers = stack.transformerlayers
        layers.attn_cfgs.update(embed_dims=32, num_heads=4)
        layers.ffn_cfgs.update(embed_dims=32, feedforward_channels=64)
    if kind != 'instances':
        model.test_cfg.update(object_mask_thr=0.6, iou_thr=0.3)
    model.test_cfg.max_per_image = 50
    return cfg


def region_toy(kind):
    """Return the config of a toy of Sparse R-CNN, or with masks of QueryInst, of two stages."""
    cfg = load_config(mmdet_config(REGIONS[kind]))
    model = cfg.model
    model.backbone = small_backbone()
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    model.rpn_head.update(num_proposals=60, proposal_feature_channel=32)
    roi_head = model.roi_head
    roi_head.update(num_stages=2, stage_loss_weights=[1, 1], proposal_feature_channel=32)
    conv = dict(in_channels=32, feat_channels=8, out_channels=32)
    for name in ('bbox', 'mask') if 'masks' in kind else ('bbox',):
        roi_head[f'{name}_roi_extractor'].out_channels = 32
        heads = roi_head[f'{name}_head'] = roi_head[f'{name}_head'][:2]
        for head in heads:
            head.update(num_classes=6, in_channels=32)
            head.dynamic_conv_cfg.update(conv)
            own = dict(feedforward_channels=64, num_heads=4, num_reg_fcs=1)
            head.update(dict(conv_out_channels=32, num_convs=1) if name == 'mask' else own)
    model.test_cfg.rcnn.max_per_img, model.train_cfg = 50, None
    return cfg


@made_once
def seeded(kind='plain'):
    """Return a toy with seeded weights; tests that change it work on a copy."""
    if kind == 'two_stage':
        return deploy.load(*TRAINED).model
    cfg = toy(kind)
    return seeded_toy(cfg, find_family(cfg))


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


def options_of(size=SIZE, family='query', **chosen):
    values = dict(height=size[0], width=size[1], opset=17) | chosen
    return FAMILIES[family].choose(**values)
