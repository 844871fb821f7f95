"""Two-stage toys: the model of configs/demo/mask_rcnn_toy.py with other heads, and seeded weights."""

import functools

import numpy as np
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from made_once import made_once
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.seeded.weights import seeded_model, seeded_scene
from mmdeploy_ext.tasks import task_module
from toy_atss import REPO
from two_stage_parts import FUSED, PARTS, REFUSED, cascade

CONFIG = f'{REPO}/configs/demo/mask_rcnn_toy.py'
KINDS = ('faster', 'cascade', 'mask', 'cascade_mask', 'rpn', 'fast', 'double', 'generic', 'sabl', *PARTS)
SIZE = (192, 256)


def toy(kind='faster', **test_cfg):
    """Return the config of a toy; `test_cfg` replaces entries of `test_cfg.rcnn`."""
    cfg = load_config(CONFIG)
    model = cfg.model
    del model.backbone['init_cfg']
    model.test_cfg.rcnn.update(test_cfg)
    roi_head = model.roi_head
    if kind in PARTS | REFUSED | FUSED:
        (PARTS | REFUSED | FUSED)[kind](model)
    elif 'mask' not in kind:
        model.type = 'FasterRCNN'
        del roi_head['mask_head'], roi_head['mask_roi_extractor']
    if kind in ALTERED:
        ALTERED[kind](model)
    if 'cascade' in kind:
        cascade(model)
    if 'mask_head' in model.get('roi_head', ()):
        model.test_cfg.rcnn.max_per_img = 40  # masks take most of the time
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


def _proposals_alone(model):
    model.type = 'RPN'
    del model['roi_head'], model.test_cfg['rcnn'], model.train_cfg['rcnn']


def _double(model):
    head = model.roi_head.bbox_head
    model.roi_head.update(type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3)
    own = dict(num_convs=1, num_fcs=1, conv_out_channels=32, fc_out_channels=64)
    head.update(type='DoubleConvFCBBoxHead', **own)


def _generic(model):
    extractor = model.roi_head.bbox_roi_extractor
    del extractor['finest_scale']
    conv = dict(type='ConvModule', in_channels=64, out_channels=64, kernel_size=3, padding=1, inplace=False)
    extractor.update(type='GenericRoIExtractor', aggregation='sum', pre_cfg=conv, post_cfg=conv)


def _sabl(model):
    coder = dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7)
    sizes = dict(roi_feat_size=7, reg_feat_up_ratio=2, reg_pre_kernel=3, reg_post_kernel=3)
    channels = dict(cls_in_channels=64, reg_in_channels=64, cls_out_channels=64, reg_offset_out_channels=64)
    model.roi_head.bbox_head = dict(
        type='SABLHead', num_classes=6, reg_cls_out_channels=64, num_cls_fcs=1, num_reg_fcs=0,
        reg_pre_num=1, reg_post_num=1, bbox_coder=coder, **sizes, **channels,
    )  # fmt: skip


def _given(model):
    model.type = 'FastRCNN'
    del model['rpn_head'], model.test_cfg['rpn'], model.train_cfg['rpn'], model.train_cfg['rpn_proposal']


ALTERED = dict(fast=_given, rpn=_proposals_alone, double=_double, generic=_generic, sabl=_sabl)
"""Kinds that differ from a Faster R-CNN in a part of it."""


@made_once
def seeded(kind='faster'):
    """Return a toy with seeded weights; tests that change it work on a copy."""
    cfg = toy(kind)
    return seeded_model(cfg, find_family(cfg)).eval()


@functools.cache
def family_of(kind):
    return find_family(toy(kind))


def images(count=2, size=SIZE, seed=5):
    """Return prepared pictures whose contents and scales differ."""
    found = []
    for index in range(count):
        content = (size[0] - 16 * (index % 2), size[1] - 24 * ((index + 1) % 2))
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


def run_stages(stages, feeds):
    """Return what a chain of modules gives, by name."""
    named = {name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()}
    with torch.no_grad():
        for stage in stages:
            named.update(
                zip(stage.outputs, stage.module(*(named[name] for name in stage.inputs)), strict=True)
            )
    return {name: tensor.numpy() for name, tensor in named.items()}


TIES = dict(sabl=2)
"""Kind -> results of both sides that rounding decides in an exported graph, see `check_results`."""


def check_results(family, model, prepared, found, least=1, ties=0):
    """Assert that results are those of `simple_test`, but for as many as `ties` that rounding decides.

    Two buckets of a side of the seeded SABL score the same to rounding: PyTorch, rounded otherwise, takes the
    other one in 9 of 24 runs, and which one ONNX Runtime takes depends on the CPU.
    """
    wanted = family.reference(model).results(prepared, True)
    assert len(found) == len(wanted) == len(prepared)
    for one, other in zip(wanted, found, strict=True):
        row = task_module(family.task).match_detections('image', one, other)
        assert not row.broken and row.reference >= least, row
        assert row.missing + row.extra + 2 * row.outside <= ties, row


def unseen_batches(kind):
    """Return three images of the traced size, and two of another that the kind takes."""
    width = 192 if kind == 'carafe' else 160  # its maps fit at multiples of 64
    return images(3, seed=9), images(2, (256, width), 3)
