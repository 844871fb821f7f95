"""From feature maps of cameras to the bird's-eye view: depth distributions times features, summed in cells.

The places of points are computed in float64 and rounded to float32 once, so the cell of a point depends on no
engine. Upstream computes in float32; points near the border of a cell may be in the other one.

Source: HuangJunJie2017/BEVDet f71858d, necks/view_transformer.py:84-260, 703-724.

Glossary: B samples, N cameras, C channels, D depth bins, h, w cells of a feature map, Y, X rows and columns
of the bird's-eye view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmdet.models import BACKBONES, HEADS, NECKS
from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.models import builder
from mmdet3d.models.dense_heads.centerpoint_head import CenterHead
from mmdet3d.models.detectors.mvx_two_stage import MVXTwoStageDetector
from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.operators.cells import sum_in_order

# Detectors of cameras that lift pictures into a bird's-eye view, at test time, without a head.
#
# Source: HuangJunJie2017/BEVDet f71858d, detectors/bevdet.py.
#
# Glossary: B samples, N cameras, C channels, H, W pictures, Y, X rows and columns of the bird's-eye view.


OWN = dict(CenterHead='BEVDetCenterHead', LSSViewTransformer='BEVDetViewTransformer')
"""Type in a config that mmdet3d has, too -> the type that a detector builds."""


def own_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config, type=OWN.get(config['type'], config['type']))


def only_map(maps: Any) -> Tensor:
    return maps[0] if isinstance(maps, list | tuple) else maps


class LiftSplatDetector(MVXTwoStageDetector):
    """Camera-only detector that lifts pictures into a bird's-eye view; `results_of` is its head's.

    `img_inputs` are pictures (B, N, 3, H, W), sensor2ego, ego2global (B, N, 4, 4), intrins, post_rots
    (B, N, 3, 3), post_trans (B, N, 3) and bda (B, 3, 3); the key ego frame is that of the first camera.
    """

    def __init__(
        self,
        img_view_transformer: Mapping[str, Any],
        img_bev_encoder_backbone: Mapping[str, Any],
        img_bev_encoder_neck: Mapping[str, Any],
        **modules: Any,
    ) -> None:
        super().__init__(**modules)
        self.img_view_transformer = builder.build_neck(own_part(img_view_transformer))
        self.img_bev_encoder_backbone = builder.build_backbone(img_bev_encoder_backbone)
        self.img_bev_encoder_neck = builder.build_neck(img_bev_encoder_neck)

    def image_encoder(self, images: Tensor) -> Tensor:
        """Return the feature maps (B, N, C, h, w) of pictures (B, N, 3, H, W)."""
        maps = only_map(self.img_neck(self.img_backbone(images.flatten(0, 1))))
        return tap('neck', maps).unflatten(0, images.shape[:2])

    def bev_encoder(self, view: Tensor) -> Tensor:
        return tap('bev_neck', only_map(self.img_bev_encoder_neck(self.img_bev_encoder_backbone(view))))

    def bev_map(self, images: Tensor, *matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the view (B, C, Y, X) of pictures, and depth, see `BEVDetViewTransformer.forward`."""
        view, depth = self.img_view_transformer([self.image_encoder(images), *matrices])
        tap('depth', depth)
        return tap('bev_feat', view), depth

    def extract_img_feat(
        self, img: Sequence[Tensor], img_metas: Any = None, **unused: Any
    ) -> tuple[list[Tensor], Tensor]:
        images, sensor2ego, ego2global, *matrices = img
        sensor2keyego = in_key_ego(ego2global[:, :1], ego2global, sensor2ego)
        place = sensor2keyego, ego2global, *matrices
        view, depth = self.bev_map(images, *place, self.img_view_transformer.get_mlp_input(*place))
        return [self.bev_encoder(view)], depth

    def forward(self, return_loss: bool = True, **data: Any) -> Any:
        """Test, as mmcv's runners call it; NotImplementedError for training."""
        if return_loss:
            name = type(self).__name__
            raise NotImplementedError(f"mm2onnx's {name} cannot train; use its own repository")
        return self.forward_test(**data)

    def forward_test(
        self,
        img_metas: Any = None,
        img_inputs: Any = None,
        points: Any = None,
        rescale: bool = False,
        **how: Any,
    ) -> list[Any]:
        """Return a list of the results of one sample.

        The metas are [one augmentation][one sample], `img_inputs` [one augmentation] of the inputs; `how` is
        given to `extract_img_feat`.
        """
        if not isinstance(img_inputs, list) or len(img_inputs) != 1:
            raise DataError(
                f'{type(self).__name__} supports one augmentation at test time: img_inputs must be a list '
                'of one'
            )
        maps, _ = self.extract_img_feat(img_inputs[0], img_metas[0], **how)
        return self.results_of(maps, img_metas[0])


def in_key_ego(key2global: Tensor, ego2global: Tensor, sensor2ego: Tensor) -> Tensor:
    """Return camera to key ego (..., 4, 4) float32, composed in float64."""
    return (torch.inverse(key2global.double()) @ ego2global.double() @ sensor2ego.double()).float()


# Heads on an encoded bird's-eye view: centres of objects, classes of voxels.
#
# Source: Yzichen/FlashOCC 4084861, dense_heads/bev_occ_head.py,
# dense_heads/bev_centerpoint_head.py:989-1656 and `center_decode`.
#
# Glossary: B samples, C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.


@registered_if_named(HEADS)
class Centerness_Head(CenterHead):
    """mmdet3d's `CenterHead` of one task, of which places and classes are read."""

    def __init__(self, task_specific: bool = True, task_specific_weight: Any = None, **config: Any) -> None:
        super().__init__(**config)

    def get_centers(
        self, preds_dicts: Sequence[Sequence[Mapping[str, Tensor]]], img_metas: Any = None, **unused: Any
    ) -> list[list[Tensor]]:
        """Return lists of one: centres (n, 3) m, scores (n,) and labels (n,), best first.

        `preds_dicts` have `reg` (1, 2, Y, X), `height` (1, 1, Y, X) and `heatmap` (1, K, Y, X).
        """
        ((maps,),), coder = preds_dicts, self.bbox_coder
        heat = maps['heatmap'].sigmoid()
        heat = heat * (functional.max_pool2d(heat, 3, 1, 1) == heat)
        scores, cells, labels, rows, columns = (row[0] for row in coder._topk(heat, coder.max_num))
        shift, height = (maps[name][0].flatten(1).T[cells] for name in ('reg', 'height'))
        places = [
            (steps + shift[:, axis]) * coder.out_size_factor * coder.voxel_size[axis] + coder.pc_range[axis]
            for axis, steps in enumerate((columns, rows))
        ]
        centers = torch.stack([*places, height[:, 0]], 1)
        low, high = centers.new_tensor(coder.post_center_range).split(3)
        kept = ((centers >= low) & (centers <= high)).all(1) & (scores > coder.score_threshold)
        return [[centers[kept]], [scores[kept]], [labels[kept].float()]]


@registered_if_named(HEADS)
class BEVOCCHead2D(nn.Module):
    """Classes of voxels; each column's are made of the channels of its cell."""

    def __init__(
        self,
        in_dim: int = 256,
        out_dim: int = 256,
        Dz: int = 16,
        num_classes: int = 18,
        **of_training: Any,
    ) -> None:
        super().__init__()
        self.Dz, self.num_classes = Dz, num_classes
        self.final_conv = ConvModule(in_dim, out_dim, 3, padding=1, conv_cfg=dict(type='Conv2d'))
        layers = nn.Linear(out_dim, out_dim * 2), nn.Softplus(), nn.Linear(out_dim * 2, num_classes * Dz)
        self.predicter = nn.Sequential(*layers)

    def forward(self, view: Tensor) -> Tensor:
        """Return logits (B, X, Y, Z, K) of an encoded view (B, C, Y, X)."""
        columns = self.final_conv(view).permute(0, 3, 2, 1)
        return tap('occ_logits', self.predicter(columns).unflatten(-1, (self.Dz, self.num_classes)))

    def get_occ(self, logits: Tensor, img_metas: Any = None) -> list[np.ndarray]:
        """Return the classes (X, Y, Z) uint8 of each sample."""
        return [*logits.softmax(-1).argmax(-1).cpu().numpy().astype(np.uint8)]


@registered_if_named(HEADS)
class BEVOCCHead2D_V2(BEVOCCHead2D):
    """The head with other losses."""


# Encoders of pictures and of the bird's-eye view, and the depth network of BEVDepth, which sees the camera.
#
# Source: HuangJunJie2017/BEVDet f71858d, necks/fpn.py, backbones/resnet.py, necks/lss_fpn.py,
# necks/view_transformer.py:470-630.
#
# Glossary: S pictures (cameras of all samples), C channels, h, w feature map, Y, X rows and columns of the
# bird's-eye view.


# ---- feature pyramid of pictures; residual network and pyramid of the bird's-eye view


@registered_if_named(NECKS)
class CustomFPN(nn.Module):
    """A feature pyramid without norm and ReLU; its output is (S, out_channels, h, w) of the first level."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 1,
        start_level: int = 0,
        out_ids: Sequence[int] = (0,),
        **unused: Any,
    ) -> None:
        super().__init__()
        if num_outs != 1 or start_level or list(out_ids) != [0]:
            raise ConfigError(
                f'CustomFPN: num_outs={num_outs}, start_level={start_level}, out_ids={list(out_ids)}; '
                f'expected 1, 0 and [0], as in the published configs'
            )
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, act_cfg=None) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList([ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None)])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [conv(level) for conv, level in zip(self.lateral_convs, maps, strict=True)]
        while len(levels) > 1:
            coarse = levels.pop()
            levels[-1] = levels[-1] + functional.interpolate(coarse, levels[-1].shape[2:], mode='nearest')
        return self.fpn_convs[0](levels[0])


def stage(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
    """Return basic blocks; the first has a convolution with a bias and without norm beside it."""
    shortcut = nn.Conv2d(inside, outside, 3, stride, 1)
    first = BasicBlock(inside, outside, stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outside, outside) for _ in range(blocks - 1)))


@registered_if_named(BACKBONES)
class CustomResNet(nn.Module):
    """Residual stages; returns the maps of the stages in `backbone_output_ids` (all by default)."""

    def __init__(
        self,
        numC_input: int,
        num_layer: Sequence[int] = (2, 2, 2),
        num_channels: Sequence[int] | None = None,
        stride: Sequence[int] = (2, 2, 2),
        backbone_output_ids: Sequence[int] | None = None,
        block_type: str = 'Basic',
        **unused: Any,
    ) -> None:
        super().__init__()
        if block_type != 'Basic':
            raise ConfigError(f"CustomResNet: block_type={block_type!r}; expected 'Basic'")
        channels = num_channels or [numC_input * 2 ** (index + 1) for index in range(len(num_layer))]
        inputs = [numC_input, *channels[:-1]]
        sizes = zip(inputs, channels, num_layer, stride, strict=True)
        self.layers = nn.Sequential(*(stage(*size) for size in sizes))
        self.backbone_output_ids = (
            range(len(num_layer)) if backbone_output_ids is None else backbone_output_ids
        )

    def forward(self, view: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            view = layer(view)
            maps.append(view)
        return [maps[index] for index in self.backbone_output_ids]


def conv_norm_relu(inside: int, outside: int, kernel: int = 3, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inside, outside, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


@registered_if_named(NECKS)
class FPN_LSS(nn.Module):
    """Joins two maps of the view's backbone: (1, out_channels, Y, X) of the grid's size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale_factor: int = 4,
        input_feature_index: Sequence[int] = (0, 2),
        extra_upsample: int | None = 2,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.input_feature_index = tuple(input_feature_index)
        self.up = nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True)
        width = out_channels * (2 if extra_upsample else 1)
        self.conv = nn.Sequential(*conv_norm_relu(in_channels, width), *conv_norm_relu(width, width))
        self.up2: nn.Module = nn.Identity()
        if extra_upsample:
            self.up2 = nn.Sequential(
                nn.Upsample(scale_factor=extra_upsample, mode='bilinear', align_corners=True),
                *conv_norm_relu(width, out_channels),
                nn.Conv2d(out_channels, out_channels, 1),
            )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fine, coarse = (maps[index] for index in self.input_feature_index)
        return self.up2(self.conv(torch.cat([fine, self.up(coarse)], 1)))


# ---- depth network

VECTOR = 27
"""Numbers of the vector of a camera."""
DILATIONS = 6, 12, 18


class Mlp(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(inside, outside), nn.ReLU(), nn.Linear(outside, outside)

    def forward(self, vector: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(vector)))


class SELayer(nn.Module):
    """Weighs the channels of a map (S, C, h, w) by gates of a vector (S, C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = nn.Conv2d(channels, channels, 1), nn.ReLU()
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, values: Tensor, vector: Tensor) -> Tensor:
        return values * self.conv_expand(self.act1(self.conv_reduce(vector))).sigmoid()


class Branch(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.atrous_conv, self.bn, self.relu = conv_norm_relu(inside, outside, kernel, dilation)

    def forward(self, values: Tensor) -> Tensor:
        return self.relu(self.bn(self.atrous_conv(values)))


class ASPP(nn.Module):
    """Convolutions of four dilations and the global mean, joined."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.aspp1 = Branch(channels, mid_channels, 1, 1)
        self.aspp2, self.aspp3, self.aspp4 = (Branch(channels, mid_channels, 3, step) for step in DILATIONS)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *conv_norm_relu(channels, mid_channels, 1)
        )
        self.conv1, self.bn1, self.relu = conv_norm_relu(5 * mid_channels, channels, 1)

    def forward(self, values: Tensor) -> Tensor:
        branches = [branch(values) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        mean = self.global_avg_pool(values).expand_as(branches[0])
        return self.relu(self.bn1(self.conv1(torch.cat([*branches, mean], 1))))


class DepthNet(nn.Module):
    """Depth logits, then features (S, depth_channels + context_channels, h, w) of maps and camera vectors."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        context_channels: int,
        depth_channels: int,
        use_dcn: bool = True,
        use_aspp: bool = True,
        aspp_mid_channels: int = -1,
        stereo: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__()
        if use_dcn or stereo or not use_aspp:
            raise ConfigError(
                f'depthnet_cfg: use_dcn={use_dcn}, stereo={stereo}, use_aspp={use_aspp}; expected False, '
                f'False and True, as in bevdet-r50-4dlongterm-depth-cbgs'
            )
        reduce = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        self.reduce_conv = nn.Sequential(reduce, nn.BatchNorm2d(mid_channels), nn.ReLU(inplace=True))
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        self.bn = nn.BatchNorm1d(VECTOR)
        self.depth_mlp, self.context_mlp = Mlp(VECTOR, mid_channels), Mlp(VECTOR, mid_channels)
        self.depth_se, self.context_se = SELayer(mid_channels), SELayer(mid_channels)
        aspp = ASPP(mid_channels, mid_channels if aspp_mid_channels < 0 else aspp_mid_channels)
        blocks = [BasicBlock(mid_channels, mid_channels) for _ in range(3)]
        self.depth_conv = nn.Sequential(*blocks, aspp, nn.Conv2d(mid_channels, depth_channels, 1))

    def forward(self, maps: Tensor, vectors: Tensor) -> Tensor:
        """`maps` are (S, in_channels, h, w), `vectors` (S, 27) or (B, N, 27)."""
        vectors = self.bn(vectors.reshape(-1, VECTOR))
        maps = self.reduce_conv(maps)
        context = self.context_conv(self.context_se(maps, self.context_mlp(vectors)[..., None, None]))
        depth = self.depth_conv(self.depth_se(maps, self.depth_mlp(vectors)[..., None, None]))
        return torch.cat([depth, context], 1)


def inverse(matrix: Tensor) -> Tensor:
    """Return the inverse (..., 3, 3) by cofactors, in operators of every engine."""
    first, second, third = matrix.unbind(-2)
    columns = _cross(second, third), _cross(third, first), _cross(first, second)
    determinant = (first * columns[0]).sum(-1)[..., None, None]
    return torch.stack(columns, -1) / determinant


def _cross(left: Tensor, right: Tensor) -> Tensor:
    return left.roll(-1, -1) * right.roll(-2, -1) - left.roll(-2, -1) * right.roll(-1, -1)


def frustum_points(
    sensor2keyego: Tensor, intrins: Tensor, post_rots: Tensor, post_trans: Tensor, frustum: Tensor
) -> Tensor:
    """Return the points of a frustum in the key ego frame, (..., D, h, w, 3) float32 metres.

    Args:
        sensor2keyego: (..., 4, 4), camera to key ego.
        intrins: (..., 3, 3), camera to picture as it was taken.
        post_rots: (..., 3, 3), picture as it was taken to the network's.
        post_trans: (..., 3), the translation behind it, pixels.
        frustum: (D, h, w, 3), pixels x, y of the network's picture and depth, metres.
    """
    pixels = frustum.flatten(0, 2).double() - post_trans.double()[..., None, :]
    points = pixels @ inverse(post_rots.double()).transpose(-1, -2)
    points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
    poses = sensor2keyego.double()
    turn = poses[..., :3, :3] @ inverse(intrins.double())
    moved = points @ turn.transpose(-1, -2) + poses[..., None, :3, 3]
    return moved.float().unflatten(-2, frustum.shape[:3])


def cells_of(points: Tensor, low: Tensor, step: Tensor, count: Sequence[int]) -> Tensor:
    """Return the cell `y * X + x` of points (..., 3) m, X * Y outside of the grid; int64.

    Truncated toward zero: points up to a cell below the lower border are in the first cell.
    """
    cell = ((points - low) / step).long()
    limits = torch.tensor(list(count), device=points.device)
    inside = ((cell >= 0) & (cell < limits)).all(-1)
    return torch.where(inside, cell[..., 1] * count[0] + cell[..., 0], count[0] * count[1])


def camera_vectors(sensor2keyego: Tensor, intrins: Tensor, post_rots: Tensor, post_trans: Tensor) -> Tensor:
    """Return the vectors (..., N, 27) that the depth network takes, without an augmentation of the view."""
    ones, zeros = torch.ones_like(intrins[..., 0, 0]), torch.zeros_like(intrins[..., 0, 0])
    numbers = [intrins[..., 0, 0], intrins[..., 1, 1], intrins[..., 0, 2], intrins[..., 1, 2]]
    for row in (0, 1):
        numbers += [post_rots[..., row, 0], post_rots[..., row, 1], post_trans[..., row]]
    numbers += [ones, zeros, zeros, ones, ones]
    return torch.cat([torch.stack(numbers, -1), sensor2keyego[..., :3, :].flatten(-2)], -1)


@registered_if_named(NECKS)
class BEVDetViewTransformer(nn.Module):
    """The view transformer that `BEVDet` builds for a config's `LSSViewTransformer`; mmdet3d has another one.

    Args:
        grid_config: 'x', 'y', 'z': lower and upper border and step, metres; 'depth': first, end (excluded)
            and step of the depth bins.
        input_size: (H, W) of the network's pictures, pixels.
        downsample: pixels per cell of the feature map.
    """

    def __init__(
        self,
        grid_config: Mapping[str, Sequence[float]],
        input_size: Sequence[int],
        downsample: int = 16,
        in_channels: int = 512,
        out_channels: int = 64,
        sid: bool = False,
        collapse_z: bool = True,
        **unused: Any,
    ) -> None:
        super().__init__()
        axes = [grid_config[axis] for axis in 'xyz']
        self.grid_lower_bound = torch.tensor([float(low) for low, _, _ in axes])
        self.grid_interval = torch.tensor([float(step) for _, _, step in axes])
        self.grid_size = torch.tensor([(high - low) / step for low, high, step in axes], device='cpu')
        self.count = tuple(round((high - low) / step) for low, high, step in axes)
        if sid or not collapse_z or self.count[2] != 1:
            raise ConfigError(
                f'{type(self).__name__}: sid={sid}, collapse_z={collapse_z}, {self.count[2]} cells along z; '
                f'expected False, True and 1, as in the published configs'
            )
        height, width = input_size
        depths = torch.arange(*grid_config['depth'], dtype=torch.float32)
        rows = torch.linspace(0, height - 1, height // downsample, dtype=torch.float32)
        columns = torch.linspace(0, width - 1, width // downsample, dtype=torch.float32)
        depth, row, column = torch.meshgrid(depths, rows, columns, indexing='ij')
        self.frustum = torch.stack([column, row, depth], -1)
        self.D, self.in_channels, self.out_channels = len(depths), in_channels, out_channels
        self.depth_net: nn.Module = nn.Conv2d(in_channels, self.D + out_channels, 1)

    def pool(self, cells: Tensor, depth: Tensor, features: Tensor) -> Tensor:
        """Return the sums (B, C, Y, X) of features (B N, C, h, w) times depth (B N, D, h, w) in each cell."""
        columns, rows, _ = self.count
        lifted = depth[..., None] * features.permute(0, 2, 3, 1)[:, None]
        lifted = lifted.reshape(len(cells), -1, features.shape[1])
        pairs = zip(cells.flatten(1), lifted, strict=True)
        sums = [sum_in_order(slots, points, rows * columns) for slots, points in pairs]
        return torch.stack(sums).transpose(1, 2).unflatten(2, (rows, columns))

    def get_mlp_input(self, sensor2keyego: Tensor, ego2global: Tensor, *matrices: Tensor) -> Tensor | None:
        """Return the camera vectors (B, N, 27) of the matrices and bda; None if depth knows no camera."""
        return None

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the view (B, C, Y, X) and the depth distributions (B N, D, h, w).

        Args:
            inputs: feature maps (B, N, in_channels, h, w), sensor2keyego, ego2global (B, N, 4, 4; the second
                is not used), intrins, post_rots (B, N, 3, 3), post_trans (B, N, 3), bda (B, 3, 3), which is
                the unit matrix at test time, and of BEVDepth the camera vectors (B, N, 27).
        """
        maps, sensor2keyego, _, *matrices = inputs[:6]
        vectors = [vector for vector in inputs[7:8] if vector is not None]
        joint = self.depth_net(maps.flatten(0, 1), *vectors)
        depth, features = joint[:, : self.D].softmax(1), joint[:, self.D : self.D + self.out_channels]
        points = frustum_points(sensor2keyego, *matrices, self.frustum.to(maps.device))
        low, step = self.grid_lower_bound.to(points), self.grid_interval.to(points)
        return self.pool(cells_of(points, low, step, self.count), depth, features), depth


@registered_if_named(NECKS)
class LSSViewTransformerBEVDepth(BEVDetViewTransformer):
    """The view transformer with a depth network that knows the camera."""

    def __init__(
        self, depthnet_cfg: Mapping[str, Any], loss_depth_weight: float = 3.0, **config: Any
    ) -> None:
        super().__init__(**config)
        self.depth_net = DepthNet(
            self.in_channels, self.in_channels, self.out_channels, self.D, **depthnet_cfg
        )

    def get_mlp_input(self, sensor2keyego: Tensor, ego2global: Tensor, *matrices: Tensor) -> Tensor:
        return camera_vectors(sensor2keyego, *matrices[:3])
