"""BEVFusion: camera and LiDAR maps in the bird's-eye view, fused, and a head.

Glossary: B samples, N cameras, S = B N pictures of (H, W) pixels, D depth bins, h, w cells of a feature map,
P points, C channels, X, Y cells of the bird's-eye view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.resnet import BasicBlock, make_res_layer
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES, NECKS
from mmdet3d.core import bbox3d2result
from mmdet3d.models.builder import (
    DETECTORS,
    FUSION_LAYERS,
    build_backbone,
    build_fusion_layer,
    build_head,
    build_neck,
)
from torch import Tensor, nn

from mm2onnx_driving.bevfusion.view_transform import Rig, build_view_transform, conv_block, read_rig
from mmdeploy_ext.base.errors import ConfigError, DataError, ShapeError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.sparse_backbone.model import LidarBackbone

# BEVFusion's neck before the view transform, and its bird's-eye view with cameras alone.
#
# Glossary: S images, B samples, C channels, h, w cells of a level, X, Y cells of the bird's-eye view.


BATCH_NORM, RELU = dict(type='BN2d'), dict(type='ReLU')
BILINEAR = dict(mode='bilinear', align_corners=True)
"""Default enlargement of maps; the published configs say `align_corners=False`."""


@registered_if_named(NECKS)
class GeneralizedLSSFPN(nn.Module):
    """Levels from the coarsest down: the map above is enlarged, joined, and convolved by 1x1 and 3x3.

    `num_outs` is unused, `start_level` must be 0 (ConfigError).

    Source: mit-han-lab/bevfusion db75150, models/necks/generalized_lss.py.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 0,
        start_level: int = 0,
        norm_cfg: Mapping[str, Any] | None = BATCH_NORM,
        act_cfg: Mapping[str, Any] | None = RELU,
        upsample_cfg: Mapping[str, Any] = BILINEAR,
    ) -> None:
        super().__init__()
        if start_level:
            raise ConfigError(f'GeneralizedLSSFPN: start_level={start_level}; expected 0')
        options = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.upsample_cfg = dict(upsample_cfg)
        self.lateral_convs, self.fpn_convs = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(in_channels[:-1]):
            above = in_channels[-1] if level == len(in_channels) - 2 else out_channels
            self.lateral_convs.append(ConvModule(channels + above, out_channels, 1, **options))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, padding=1, **options))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return (S, C, h, w) of every level but the last, the finest first."""
        levels = list(maps)
        for level in reversed(range(len(levels) - 1)):
            above = nn.functional.interpolate(
                levels[level + 1], size=levels[level].shape[2:], **self.upsample_cfg
            )
            joined = self.lateral_convs[level](torch.cat([levels[level], above], dim=1))
            levels[level] = self.fpn_convs[level](joined)
        return tuple(levels[:-1])


@registered_if_named(BACKBONES)
class GeneralizedResNet(nn.ModuleList):
    """Stages of residual blocks without a stem; `blocks` has (blocks, channels, stride) per stage.

    Source: mit-han-lab/bevfusion db75150, models/backbones/resnet.py.
    """

    def __init__(self, in_channels: int, blocks: Sequence[Sequence[int]]) -> None:
        channels = [in_channels, *(outside for _, outside, _ in blocks)]
        super().__init__(
            make_res_layer(BasicBlock, inside, outside, count, stride=stride)
            for inside, (count, outside, stride) in zip(channels, blocks, strict=False)
        )

    def forward(self, joint: Tensor) -> list[Tensor]:
        """Return the maps of all stages of (B, in_channels, X, Y)."""
        maps = []
        for stage in self:
            joint = stage(joint)
            maps.append(joint)
        return maps


@registered_if_named(NECKS)
class LSSFPN(nn.Module):
    """A coarse map enlarged to a fine map, joined, convolved, and enlarged again.

    Source: mit-han-lab/bevfusion db75150, models/necks/lss.py.
    """

    def __init__(
        self, in_indices: Sequence[int], in_channels: Sequence[int], out_channels: int, scale_factor: int = 1
    ) -> None:
        super().__init__()
        self.in_indices = tuple(in_indices)
        self.fuse = nn.Sequential(
            *conv_block(sum(in_channels), out_channels, 1, 1, bias=False),
            *conv_block(out_channels, out_channels, 3, 1, bias=False),
        )
        self.upsample: nn.Module = nn.Identity()
        if scale_factor > 1:
            enlarged = nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True)
            last = conv_block(out_channels, out_channels, 3, 1, bias=False)
            self.upsample = nn.Sequential(enlarged, *last)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return a list of one map (B, C, X, Y), the fine map's size times `scale_factor`."""
        coarse, fine = (maps[index] for index in self.in_indices)
        above = nn.functional.interpolate(coarse, size=fine.shape[2:], mode='bilinear', align_corners=True)
        return [self.upsample(self.fuse(torch.cat([above, fine], 1)))]


SENSORS = ('camera', 'lidar')
HEADS = dict(TransFusionHead='TransFusionHead', CenterHead='BEVFusionCenterHead')


@registered_if_named(FUSION_LAYERS)
class ConvFuser(nn.Sequential):
    """The maps of all sensors, joined, and a 3x3 convolution to C channels.

    Source: mit-han-lab/bevfusion db75150, models/fusers/conv.py.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        super().__init__(
            nn.Conv2d(sum(in_channels), out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(True),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, C, X, Y) of maps (B, ., X, Y), cameras first."""
        return super().forward(torch.cat(tuple(maps), 1))


@registered_if_named(DETECTORS, builds=('BEVFusionCenterHead',))
class BEVFusion(BaseModule):
    """Cameras, LiDAR or both to boxes; parameters are named as in mit-han-lab's checkpoints.

    Args:
        encoders: 'camera' -> 'backbone', 'neck', 'vtransform'; 'lidar' -> 'voxelize', 'backbone'; or one of
            both.
        fuser: fuses the maps of both sensors; None for one sensor.
        decoder: 'backbone' and 'neck' of the bird's-eye view.
        heads: 'object' -> the head; 'map' must be empty.
        train_cfg, test_cfg: unused; the head has its own.

    Source: mit-han-lab/bevfusion db75150, models/fusion_models/bevfusion.py.
    """

    fork: Any = None
    """The repository with the reference's code (`projects/driving/mm2onnx_driving/bevfusion/fork.py`), or
    None.
    """

    def __init__(
        self,
        encoders: Mapping[str, Any],
        decoder: Mapping[str, Any],
        heads: Mapping[str, Any],
        fuser: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_parts(encoders, fuser, heads)
        self.encoders = nn.ModuleDict()
        if encoders.get('camera'):
            camera = encoders['camera']
            self.encoders['camera'] = nn.ModuleDict(
                dict(
                    backbone=build_backbone(camera['backbone']),
                    neck=build_neck(camera['neck']),
                    vtransform=build_view_transform(camera['vtransform']),
                )
            )
        if encoders.get('lidar'):
            lidar = encoders['lidar']
            self.encoders['lidar'] = LidarBackbone(lidar['voxelize'], lidar['backbone'])
        self.fuser = build_fusion_layer(fuser) if fuser else None
        self.decoder = nn.ModuleDict(
            dict(backbone=build_backbone(decoder['backbone']), neck=build_neck(decoder['neck']))
        )
        head = heads['object']
        self.heads = nn.ModuleDict(dict(object=build_head(dict(head, type=HEADS[head['type']]))))

    @property
    def sensors(self) -> tuple[str, ...]:
        return tuple(name for name in SENSORS if name in self.encoders)

    def camera_maps(self, pictures: Tensor) -> Tensor:
        """Return the finest map of the neck, (S, C, h, w), of pictures (S, 3, H, W)."""
        camera = self.encoders['camera']
        return camera['neck'](camera['backbone'](pictures))[0]

    def camera_view(self, img: Tensor, points: Sequence[Tensor], rig: Rig) -> Tensor:
        """Return the cameras' map (B, C, X, Y) of images (B, N, 3, H, W); `points` make depth maps."""
        transform = self.encoders['camera']['vtransform']
        depth = transform.depth_maps(points, rig).flatten(0, 1) if transform.uses_points else None
        weights, features = self.lifted(img.flatten(0, 1), depth)
        return transform.downsample(transform.pool(weights, features, transform.cells(rig)))

    def lifted(self, pictures: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weights (S, D, h, w) and features (S, C, h, w) for `ViewTransform.pool`.

        `pictures` are (S, 3, H, W); `depth` (S, 1, H, W) metres, 0 without a point, or None.
        """
        return self.encoders['camera']['vtransform'].lift(self.camera_maps(pictures), depth)

    def lidar_view(self, points: Sequence[Tensor]) -> Tensor:
        """Return the LiDAR's map (B, C, X, Y) of points (P, in_channels) per sample."""
        return self.encoders['lidar'](points)

    def joined(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the head's input (B, C, X, Y) of the sensors' maps (B, ., X, Y)."""
        joint = self.fuser(maps) if self.fuser is not None else maps[0]
        return self.decoder['neck'](self.decoder['backbone'](joint))[0]

    def predictions(
        self, img: Tensor | None, points: Sequence[Tensor] | None, metas: Sequence[Mapping[str, Any]]
    ) -> Any:
        """Return the head's predictions.

        `img` is (B, N, 3, H, W), `points` (P, in_channels) per sample in the augmented LiDAR frame; metas:
        `rig.read_rig`.
        """
        maps = []
        for sensor in self.sensors:
            if points is None and (sensor == 'lidar' or self.encoders[sensor]['vtransform'].uses_points):
                raise ShapeError('points are None; expected an array (P, in_channels) per sample')
            if sensor == 'lidar':
                maps.append(self.lidar_view(points))
                continue
            size = self.encoders['camera']['vtransform'].image_size
            if img is None or img.ndim != 5 or tuple(img.shape[2:]) != (3, *size):
                shape = None if img is None else tuple(img.shape)
                raise ShapeError(f'images are {shape}; expected (B, cameras, 3, {size[0]}, {size[1]})')
            rig = read_rig(metas, img.device, img.shape[1])
            maps.append(self.camera_view(img, points, rig))
        return self.heads['object'](self.joined(maps))

    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        if return_loss:
            raise NotImplementedError('this BEVFusion cannot train; use its own repository')
        return self.forward_test(**data)

    def forward_test(
        self, img_metas: Any, points: Any = None, img: Any = None, **ignored: Any
    ) -> list[dict[str, Any]]:
        if isinstance(img_metas[0], list):
            if len(img_metas) != 1:
                raise DataError(
                    f'BEVFusion supports one augmentation at test time, got {len(img_metas)}; keep '
                    'one in the pipeline'
                )
            img_metas = img_metas[0]
            points = points[0] if points is not None else None
            img = img[0] if img is not None else None
        return self.simple_test(img_metas, points, img)

    @torch.no_grad()
    def simple_test(
        self, img_metas: Sequence[Mapping[str, Any]], points: Sequence[Tensor], img: Tensor | None = None
    ) -> list[dict[str, Any]]:
        samples = self.heads['object'].get_bboxes(self.predictions(img, points, img_metas))
        results = []
        for meta, sample in zip(img_metas, samples, strict=True):
            columns = lidar_columns(sample['bboxes'].cpu())
            boxes = meta['box_type_3d'](columns, columns.shape[1])
            results.append(dict(pts_bbox=bbox3d2result(boxes, sample['scores'], sample['labels'])))
        return results


def lidar_columns(boxes: Tensor) -> Tensor:
    """Return boxes (n, 7 or 9) of a head in mmdet3d 1.x's columns.

    It shares no code with the runtime's `in_lidar_columns`: the heading comes from its sine and cosine.
    """
    x_y_z, (width, length, height), yaw = boxes[:, :3], boxes[:, 3:6].T, boxes[:, 6]
    heading = torch.atan2(-yaw.cos(), -yaw.sin())
    return torch.cat([x_y_z, torch.stack([length, width, height, heading], 1), boxes[:, 7:]], 1)


def check_parts(encoders: Mapping[str, Any], fuser: Any, heads: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the key, for unsupported parts."""
    sensors = [name for name in SENSORS if encoders.get(name)]
    unknown = [name for name in encoders if name not in SENSORS and encoders[name]]
    if unknown or not sensors:
        raise ConfigError(
            f'BEVFusion: encoders has {", ".join(unknown) or "nothing"}; expected camera, lidar or both'
        )
    if (fuser is not None) != (len(sensors) > 1):
        raise ConfigError(f'BEVFusion: fuser={fuser}: expected a fuser for two sensors and none for one')
    unknown_heads = [name for name, head in heads.items() if head and name != 'object']
    if unknown_heads or not heads.get('object'):
        names = ', '.join(unknown_heads) or 'no object'
        raise ConfigError(f'BEVFusion: heads has {names}; expected only object')
    if (kind := heads['object'].get('type')) not in HEADS:
        raise ConfigError(f'BEVFusion: heads.object.type={kind!r}; expected {" or ".join(HEADS)}')
