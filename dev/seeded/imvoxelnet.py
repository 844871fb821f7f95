"""Seeded weights of ImVoxelNet: its network on pictures, then its head by the LiDAR rule."""

from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded.layers import calibrate_norms, fill_network, norms_of
from dev.seeded.lidar import scale_last_layers
from dev.seeded.weights import normalised_photograph, seeded_scene
from mmdeploy_ext.families.common.lidar_parts import Parts
from mmdeploy_ext.families.imvoxelnet.graphs import Network
from mmdeploy_ext.families.synthetic.picture_cameras import lidar_camera
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage

PICTURES, SIZE = 2, (192, 640)
"""Number of calibration pictures, and their height and width."""
RESIDUAL = 0.25
"""Scale of the last normalisation of residual blocks, see `dense.NetworkCalibration`."""


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    """Fill a new detector with seeded weights, in place, and return it in evaluation mode."""
    deviation, offset = normalised_photograph(cfg)
    model.eval()
    with torch.no_grad():
        fill_network(model, seed, RESIDUAL)
        pictures = torch.cat([seeded_scene(seed + index, *SIZE) for index in range(PICTURES)])
        pictures = pictures * deviation + offset
        norms = [*norms_of(model.backbone), *norms_of(model.neck)]
        maps = calibrate_norms(norms, lambda: model.neck(model.backbone(pictures))[0])
        unscaled = np.ones(4, np.float32)
        images = [PreparedImage(picture.numpy(), SIZE, unscaled, SIZE) for picture in pictures]
        cameras = torch.from_numpy(np.stack([lidar_camera(image) for image in images]))
        ratios = torch.ones(len(pictures), 4)
        volume = Network(model).volume(maps, pictures, cameras, ratios)
        parts = Parts(
            prefix='',
            voxel_layer=None,
            voxel_encoder=None,
            middle_encoder=None,
            backbone=model.neck_3d,
            neck=None,
            head=model.bbox_head,
        )
        scale_last_layers(parts, volume)
    return model
