"""A repository with an `mmdet3d` of its own, as mit-han-lab/bevfusion has one: its structure, our code.

Its package extends the installed mmdet3d, so that it needs no operators; its BEVFusion is ours with the
signature, the sparse encoder's name and the results of the repository. A change is a line of its class.
"""

import json

import torch
import yaml

import toy_bevfusion
from mmdeploy_ext.base.config import load_config

PACKAGE = """
import importlib.metadata
__version__ = '0.17.0'
__path__.append(str(importlib.metadata.distribution('mmdet3d').locate_file('mmdet3d')))
"""
MODELS = """
import importlib.metadata
__path__.append(str(importlib.metadata.distribution('mmdet3d').locate_file('mmdet3d/models')))
from mmdet3d.models.builder import *
from mmdet3d.models import backbones, necks
from .fusion_models import BEVFusion


def build_model(cfg, test_cfg=None):
    return BEVFusion(**{name: cfg[name] for name in ('encoders', 'decoder', 'heads')})
"""
DATASETS = """
import pickle
from pathlib import Path

import numpy as np
import torch
from mmcv.parallel import DataContainer


class Moments:
    def __init__(self, cfg):
        self.infos = pickle.loads(Path(cfg['ann_file']).read_bytes())['infos']
        steps = {step['type']: step for step in cfg['pipeline']}
        self.limits = np.float32(steps['PointsRangeFilter']['point_cloud_range'])

    def prepare_test_data(self, index):
        info = self.infos[index]
        points = np.fromfile(info['lidar_path'], np.float32).reshape(-1, 5)
        points[:, 4] = 0
        clouds = [points] if info['sweeps'] else [points, far(points), far(points)]
        for sweep in info['sweeps'][:2]:
            cloud = far(np.fromfile(sweep['data_path'], np.float32).reshape(-1, 5))
            cloud[:, :3] = cloud[:, :3] @ sweep['sensor2lidar_rotation'].T
            cloud[:, :3] += sweep['sensor2lidar_translation']
            cloud[:, 4] = info['timestamp'] / 1e6 - sweep['timestamp'] / 1e6
            clouds.append(cloud)
        points = np.concatenate(clouds)
        inside = ((points[:, :3] > self.limits[:3]) & (points[:, :3] < self.limits[3:])).all(1)
        return dict(points=DataContainer(torch.from_numpy(points[inside])), metas=DataContainer({}))


def far(points):
    return points[(np.abs(points[:, :2]) >= 1.0).any(1)]


def build_dataset(cfg):
    return Moments(cfg)
"""
BEVFUSION = """
import copy
from unittest import mock

from mmdet3d.models import builder
from mmdeploy_ext.runtime.detections3d import in_lidar_columns
from mmdeploy_ext.upstream.models import catalogue
from mm2onnx_driving.bevfusion import fusion
from mmdeploy_ext.upstream.models.sparse_backbone.model import LidarBackbone


for name in ('BEVFusionSparseEncoder', 'TransFusionHead', 'TransFusionBBoxCoder'):
    catalogue.register([name])


class Lidar(LidarBackbone):
    def __getitem__(self, name):
        return self.encoder


class BEVFusion(fusion.BEVFusion):
    def __init__(self, encoders, **parts):
        encoders = copy.deepcopy({name: encoder for name, encoder in encoders.items() if encoder})
        encoders['lidar']['backbone']['type'] = 'BEVFusionSparseEncoder'
        own = {name: getattr(builder, name) for name in ('build_backbone', 'build_neck')}
        with mock.patch.multiple(fusion, **own):
            super().__init__(encoders, **parts)
        self.encoders['lidar'].__class__ = Lidar
        self.heads['object'].__class__ = type('Head', (Head, type(self.heads['object'])), {})

    def forward(self, return_loss, rescale, img, points, metas, **data):
        found = self.predictions(img, points, [{}])
        outputs = []
        for boxes, scores, labels in self.heads['object'].get_bboxes(found, metas):
            outputs.append(dict(boxes_3d=boxes, scores_3d=scores, labels_3d=labels))
        return outputs


class Head:
    query_labels = None

    def forward(self, feats):
        return ([super().forward(feats)],)

    def get_bboxes(self, preds_dicts, metas):
        values = dict(preds_dicts[0][0])
        values.setdefault('query_labels', self.query_labels)
        values['query_heatmap_score'] = values['query_heatmap_score'].to(values['heatmap'])
        (found,) = super().get_bboxes(values)
        boxes, scores = in_lidar_columns(found['bboxes']), found['scores']
        return [[metas[0]['box_type_3d'](boxes, boxes.shape[1]), scores, found['labels']]]
"""
CHANGE = "in_lidar_columns(found['bboxes'])", "in_lidar_columns(found['bboxes']) * 1.001"
"""A text of the repository's class, and what replaces it."""


def plain(value):
    """Return a config's value without tuples, as YAML has it."""
    return json.loads(json.dumps(value))


def repository(folder, changed=False):
    """Write the repository, with or without a change of its class, into a folder."""
    text = BEVFUSION.replace(*CHANGE) if changed else BEVFUSION
    assert (text != BEVFUSION) == changed
    package = folder / 'mmdet3d'
    for place, content in (
        ('__init__.py', PACKAGE),
        ('datasets/__init__.py', DATASETS),
        ('models/__init__.py', MODELS),
        ('models/fusion_models/__init__.py', 'from .bevfusion import BEVFusion\n'),
        ('models/fusion_models/bevfusion.py', text),
    ):
        path = package / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def configured(folder):
    """Write the config and the checkpoint of a model of LiDAR alone into a folder; return both."""
    source = load_config(toy_bevfusion.write_config(folder / 'source.py', **toy_bevfusion.alone('lidar')))
    model = plain(source.model.to_dict())
    model['encoders']['lidar']['backbone']['type'] = 'SparseEncoder'
    limits = model['encoders']['lidar']['voxelize'].pop('point_cloud_range')
    model['encoders']['lidar']['voxelize']['point_cloud_range'] = '${point_cloud_range}'
    configs = folder / 'configs/lidar'
    configs.mkdir(parents=True)
    points, past = dict(load_dim=5, use_dim=5), dict(pad_empty_sweeps=True, remove_close=True)
    unmoved = dict(resize_lim=[1.0, 1.0], rot_lim=[0.0, 0.0], trans_lim=0.0, is_train=False)
    steps = [
        dict(type='LoadMultiViewImageFromFiles', to_float32=True),
        dict(type='LoadPointsFromFile', coord_type='LIDAR', reduce_beams=32, **points),
        dict(type='LoadPointsFromMultiSweeps', sweeps_num=2, **points, **past),
        dict(type='LoadAnnotations3D', with_bbox_3d=True),
        dict(type='ImageAug3D', final_dim=[64, 96], resize_lim=[0.5, 0.5], is_train=False),
        dict(type='GlobalRotScaleTrans', **unmoved),
        dict(type='PointsRangeFilter', point_cloud_range='${point_cloud_range}'),
        dict(type='ImageNormalize', mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
        dict(type='DefaultFormatBundle3D', classes='${object_classes}'),
        dict(type='Collect3D', keys=['points', 'gt_bboxes_3d'], meta_keys=['lidar2ego']),
    ]
    names = ['car', 'truck', 'bus', 'trailer', 'van', 'barrier', 'moped', 'bicycle', 'person', 'cone']
    test = dict(dataset_root='data/', pipeline=steps, object_classes='${object_classes}')
    defaults = dict(object_classes=names, data=dict(test=test))
    (folder / 'configs/default.yaml').write_text(yaml.safe_dump(defaults))
    (configs / 'toy.yaml').write_text(yaml.safe_dump(dict(model=model, point_cloud_range=limits)))
    torch.save(dict(state_dict=toy_bevfusion.seeded(source).state_dict()), folder / 'toy.pth')
    return str(configs / 'toy.yaml'), str(folder / 'toy.pth')
