"""A small MVX-Net, exported once; frames for it are those of proofs without a data set, with more points."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np

from dev.seeded.weights import seeded_model
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family
from toy_anchor3d import CLASSES, HEAD
from toy_centerpoint import exported_of, register, replaced_words, sweep

PAINTED = """
head['anchor_generator']['type'] = 'Anchor3DRangeGenerator'
layer.update(voxel_size=[0.4, 0.4, 0.4], max_num_points=-1, max_voxels=(-1, -1))
second['layer_strides'] = [1, 2]
test['nms_pre'] = 300
model = dict(
    type='DynamicMVXFasterRCNN',
    img_backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, style='pytorch',
                      norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True),
    img_neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
    pts_voxel_layer=layer,
    pts_voxel_encoder=dict(
        type='DynamicVFE', in_channels=4, feat_channels=[8, 8], with_distance=False,
        voxel_size=layer['voxel_size'], with_cluster_center=True, with_voxel_center=True,
        point_cloud_range=pc_range,
        fusion_layer=dict(type='PointFusion', img_channels=8, pts_channels=8, mid_channels=8, out_channels=16,
                          img_levels=[0, 1, 2, 3, 4], align_corners=False, activate_out=True,
                          fuse_out=False)),
    pts_middle_encoder=dict(
        type='SparseEncoder', in_channels=16, sparse_shape=[9, 40, 32], base_channels=4, output_channels=8,
        encoder_channels=((4, 4, 8), (8, 8)), encoder_paddings=((0, 0, 1), (0, 0)), block_type='basicblock'),
    pts_backbone=second, pts_neck=neck, pts_bbox_head=head, test_cfg=dict(pts=test))
del head, test, second, neck, layer, norm, vfe, scatter
data = dict(test=dict(type='KittiDataset', classes=['car', 'bus', 'truck'], pts_prefix='velodyne_reduced',
    pipeline=[
        dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug3D', img_scale=(320, 96), pts_scale_ratio=1, flip=False, transforms=[
            dict(type='Resize', multiscale_mode='value', keep_ratio=True),
            dict(type='GlobalRotScaleTrans', rot_range=[0, 0], scale_ratio_range=[1., 1.],
                 translation_std=[0, 0, 0]),
            dict(type='RandomFlip3D'),
            dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False),
            dict(type='Pad', size_divisor=32),
            dict(type='PointsRangeFilter', point_cloud_range=pc_range),
            dict(type='DefaultFormatBundle3D', class_names=[], with_label=False),
            dict(type='Collect3D', keys=['points', 'img'])])]))
"""


def write_config(folder, words=()):
    """Write the config, with words of it replaced; return its path."""
    path = Path(folder) / 'tiny_mvxnet.py'
    path.write_text(replaced_words(HEAD + PAINTED, dict(words)))
    return str(path)


def frames(detector, count):
    """Return frames of a proof with more points, in clusters."""
    made = detector.family.data.generated_sweeps(detector.rule, count)
    return [
        dataclasses.replace(frame, points=np.concatenate([sweep(seed, 600)[:, :4], frame.points]))
        for seed, frame in enumerate(made)
    ]


@functools.cache
def exported():
    """Return (detector, folder of graphs, config, checkpoint), made once per process."""
    register()
    folder = Path(tempfile.mkdtemp(prefix='tiny_mvxnet_'))
    config = write_config(folder)
    cfg = load_config(config)
    weights = seeded_model(cfg, find_family(cfg)).state_dict()
    return exported_of(config, folder / 'tiny.pth', weights, CLASSES)
