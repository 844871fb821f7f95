"""MVX-Net: supported configs and their modules."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import mmdet3d.datasets  # noqa: F401 - registers data sets and steps of pipelines
import numpy as np
import torch
from mmdet3d.models import builder

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.families.anchor3d.family import AnchorReference, check_head, check_limits, facts_of
from mmdeploy_ext.families.anchor3d.mvxnet.graphs import graphs
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, FAMILY, FEATURES, MvxNetOnnx, check_camera
from mmdeploy_ext.families.anchor3d.mvxnet.samples import (
    MvxNetData,
    fusion_rule,
    generated,
    mirrored,
    one_point_frame,
)
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import anchor_heads
from mmdeploy_ext.families.common.lidar_models import UNTRACED, LidarMethods, points_width
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import FusionRule
from mmdeploy_ext.upstream.models.building import names_of_class


class MvxNetReference(AnchorReference):
    def forward_arguments(self, frame: FusedFrame, points: np.ndarray) -> dict[str, Any]:
        arguments = super().forward_arguments(frame, points)
        ((meta,),) = arguments['img_metas']
        check_camera(frame)
        lidar2image, img_aug = (np.asarray(frame.calibration[key], np.float32)[0] for key in CAMERA)
        scale, (left, top) = img_aug[[0, 1], [0, 1]], img_aug[:2, 3]
        height, width = frame.images.shape[2:]
        flip = bool(scale[0] < 0)
        if flip:  # upstream subtracts x from the width of the picture, which is all that it reads of it
            width, left = float(left), np.float32(0)
        meta |= dict(
            lidar2img=lidar2image,
            scale_factor=np.abs(np.tile(scale, 2)),
            img_crop_offset=np.array([-left, -top]),
            flip=flip,
            img_shape=(height, width, 3),
        )
        image = torch.from_numpy(np.array(frame.images, np.float32))
        tap('images', image)
        for name, matrix in zip(CAMERA, (lidar2image, img_aug), strict=True):
            tap(name, torch.from_numpy(matrix[None]))
        return arguments | dict(img=[image.to(self.device)])

    def hooks(self) -> dict[torch.nn.Module, Hook]:
        encoder = self.parts.voxel_encoder
        return {encoder: lambda _, output: {FEATURES: output[0]}, **super().hooks()}

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(
            voxels=[
                (self.model, 'extract_img_feat'),
                (self.model, 'voxelize'),
                (self.parts.voxel_encoder, 'forward'),
            ],
            backbone=[(self.parts.middle_encoder, 'forward')],
            boxes=[(self.parts.head, 'get_bboxes')],
        )

    def special_samples(self, rule: FusionRule, sample: FusedFrame) -> Iterable[FusedFrame]:
        return map(mirrored, itertools.islice(generated(rule, 2), 1, 2))

    def plain_sample(self, rule: FusionRule, sample: FusedFrame) -> FusedFrame:
        return one_point_frame(sample, rule.voxels.point_cloud_range)


DETECTOR = 'DynamicMVXFasterRCNN'
PARTS = dict(
    pts_voxel_encoder=('DynamicVFE', builder.VOXEL_ENCODERS),
    pts_middle_encoder=('SparseEncoder', None),
    pts_bbox_head=('Anchor3DHead', builder.HEADS),
)
NOT_EXPORTED = ('pts_fusion_layer', 'img_rpn_head', 'img_roi_head')


def check_encoder(filename: str, model: Mapping[str, Any]) -> None:
    key, encoder = 'model.pts_voxel_encoder', model['pts_voxel_encoder']
    fusion = encoder.get('fusion_layer') or {}
    if 'PointFusion' not in names_of_class(builder.FUSION_LAYERS, fusion.get('type')):
        raise ConfigError(f'{filename}: {key}.fusion_layer.type={fusion.get("type")!r}; expected PointFusion')
    layer = model.get('pts_voxel_layer') or {}
    if int(layer.get('max_num_points', -1)) != -1:
        raise ConfigError(
            f'{filename}: model.pts_voxel_layer.max_num_points={layer["max_num_points"]}; expected -1: all '
            f'points of a voxel'
        )


class MvxNetFamily(LidarMethods, SequenceFamily):
    name = FAMILY
    files = MvxNetOnnx.graphs
    samples = 'fused'
    untraced = (
        *UNTRACED, *anchor_heads.UNTRACED, '.extract_img_feat', 'map_voxel_center_to_point',
        'obtain_mlvl_feats', 'sample_single', '*fusion_layer.forward',
    )  # fmt: skip
    graphs, reference = staticmethod(graphs), staticmethod(MvxNetReference)
    result, facts, data = staticmethod(result), staticmethod(facts_of), MvxNetData()

    def claims(self, cfg: Any) -> Claim:
        names = names_of_class(builder.DETECTORS, cfg.model.get('type'))
        return Claim.DETECTOR if DETECTOR in names else Claim.NO

    def check_parts(self, filename: str, model: Mapping[str, Any]) -> None:
        for key, (exported, registry) in PARTS.items():
            part_type = (model.get(key) or {}).get('type')
            names = names_of_class(registry, part_type) if registry else [part_type]
            if exported not in names:
                raise ConfigError(f'{filename}: model.{key}.type={part_type!r}; expected {exported}')
        if not model.get('img_backbone'):
            raise ConfigError(f'{filename}: model has no img_backbone; expected a backbone for the image')
        for key in NOT_EXPORTED:
            if model.get(key):
                raise ConfigError(f'{filename}: model.{key} is not supported; remove it')
        check_encoder(filename, model)
        check_head(filename, model)

    def check(self, cfg: Any, options: Options) -> None:
        super().check(cfg, options)
        check_limits(cfg)
        self.preprocess_rule(cfg)

    def preprocess_rule(self, cfg: Any) -> FusionRule:
        self.check_model(cfg)
        return fusion_rule(cfg, points_width(cfg.model)[1])
