"""MVX-Net in PyTorch as a stepper: mmdet3d's detector, unpatched."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, FEATURES, check_camera
from mmdeploy_ext.families.anchor3d.mvxnet.samples import generated, mirrored, one_point_frame
from mmdeploy_ext.families.anchor3d.reference import AnchorReference
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.spec.preparation import FusionRule


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
