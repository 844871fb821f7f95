"""Toys of FCOS3D, PGD and SMOKE: mmdet3d's configs with small networks, and their seeded deployments."""

import functools

import numpy as np

from mmdeploy_ext.core.config import load_config, mmdet3d_config
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.synthetic.scene import make_scene
from mmdeploy_ext.synthetic.seeded import SCENE_SHAPES, seeded_model

SIZE = (96, 320)

KINDS = dict(
    fcos3d='fcos3d/fcos3d_r101_caffe_fpn_gn-head_dcn_2x8_1x_nus-mono3d.py',
    pgd='pgd/pgd_r101_caffe_fpn_gn-head_3x4_4x_kitti-mono3d.py',
    smoke='smoke/smoke_dla34_pytorch_dlaneck_gn-all_8x4_6x_kitti-mono3d.py',
)


def toy(kind='smoke'):
    """Return the config of a toy."""
    cfg = load_config(mmdet3d_config(KINDS[kind]))
    model = cfg.model
    if kind == 'smoke':
        group = dict(type='GN', num_groups=4)
        model.backbone = dict(
            type='ResNet', depth=18, base_channels=8, num_stages=1, strides=(1,), dilations=(1,),
            out_indices=(0,), norm_cfg=dict(type='BN'),
        )  # fmt: skip
        model.neck = dict(type='FPN', in_channels=[8], out_channels=16, num_outs=1)
        model.bbox_head.update(in_channels=16, feat_channels=16, cls_branch=(16,), reg_branch=((16,),))
        model.bbox_head.norm_cfg = group
        for step in cfg.data.test.pipeline[1].transforms:
            if step['type'] == 'AffineResize':
                step['img_scale'] = (320, 96)
        cfg.data.test.pipeline[1].img_scale = (320, 96)
        return cfg
    model.backbone.update(depth=18, base_channels=8, stage_with_dcn=(False,) * 4, style='pytorch')
    model.backbone.pop('dcn', None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    head = model.bbox_head
    branches = tuple((16,) if branch else () for branch in head.reg_branch)
    head.update(
        in_channels=16, feat_channels=16, stacked_convs=1, cls_branch=(16,), reg_branch=branches,
        dir_branch=(16,), attr_branch=(16,), centerness_branch=(16,), dcn_on_last_conv=False,
        norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
    )  # fmt: skip
    if kind == 'pgd':
        head.update(depth_branch=(16,), weight_branch=((16,),))
    else:
        model.neck.num_outs = 3
        head.update(strides=[8, 16, 32], regress_ranges=((-1, 48), (48, 96), (96, 1e8)))
    model.test_cfg.update(nms_pre=60, max_per_img=40)
    return cfg


@functools.cache
def seeded(kind='smoke'):
    """Return the deployment of a toy with seeded weights."""
    cfg = toy(kind)
    family = find_family(cfg)
    model = seeded_model(cfg, family).eval()
    model.CLASSES = deploy.class_names(cfg, {}, family.num_classes(model))
    return deploy.Deployment(
        cfg=cfg, config=f'{kind}.py', cfg_options={}, family=family, model=model, checkpoint='seeded',
        checkpoint_sha256='0' * 64, classes=model.CLASSES, rule=family.preprocess_rule(cfg),
    )  # fmt: skip


def picture(seed=3, height=100, width=300):
    """Return the title and the pixels of a generated picture."""
    return f'scene{seed}.jpg', make_scene(np.random.default_rng(seed), height, width, SCENE_SHAPES)[0]


def options(kind='smoke', **values):
    """Return the options of an export, complete."""
    deployment = seeded(kind)
    values = dict(dict(opset=0, height=SIZE[0], width=SIZE[1]), **values)
    chosen = deployment.family.choose(**values)
    return deploy.check_options(chosen, deployment.cfg, deployment.family, deployment.model)


def exported(kind, path, **values):
    """Export a toy and return the path of its file."""
    deployment, chosen = seeded(kind), options(kind, **values)
    traced = [deploy.prepare_fixed(deployment.rule, picture()[1], *SIZE)]
    (file,), _ = export_files(deployment, chosen, str(path), traced)
    deployment.exports.clear()
    return file
