"""RTMDet-Ins, CondInst and BoxInst: heads that predict, per cell, the layers of an instance's mask.

Source: mmdet 3.3.0 `dense_heads/{rtmdet_ins_head,condinst_head}.py`, `utils/misc.py` `aligned_bilinear`.
Glossary: B batch, n instances, P channels of the mask features, K parameters, C classes, L levels, h, w size
of a map, H, W network input in pixels.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmcv.ops import batched_nms
from mmcv.runner import BaseModule
from mmdet.core import bbox2result, build_bbox_coder
from mmdet.core.utils import filter_scores_and_topk
from mmdet.models.builder import BACKBONES, DETECTORS, HEADS, NECKS, build_head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.dense_test_mixins import BBoxTestMixin
from mmdet.models.detectors import SingleStageDetector
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# RTMDet: CSPNeXt, its neck, head and detector, with mmdet 3's names of parameters and settings.
#
# Source: mmdet 3.3.0 `backbones/cspnext.py`, `layers/{csp_layer,se_layer}.py`, `necks/cspnext_pafpn.py`,
# `dense_heads/rtmdet_head.py`.
#
# Glossary: B images, H, W pixels of an image, C channels, or classes of logits, h, w cells of a map.


build_prior_generator = mmdet_module('mmdet.core').build_prior_generator
CSPLayer = mmdet_module('mmdet.models.utils').CSPLayer
SPPBottleneck = mmdet_module('mmdet.models.backbones.csp_darknet').SPPBottleneck
YOLOXPAFPN = mmdet_module('mmdet.models.necks').YOLOXPAFPN
inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

NORM = dict(type='BN', momentum=0.03, eps=0.001)
SILU = dict(type='SiLU')
KERNEL = 5
Stage = tuple[int, int, int, bool, bool]
FINE = ((64, 128, 3, True, False), (128, 256, 6, True, False), (256, 512, 6, True, False))
"""The first three stages of every architecture."""
ARCHITECTURES: dict[str, tuple[Stage, ...]] = dict(
    P5=(*FINE, (512, 1024, 3, False, True)),
    P6=(*FINE, (512, 768, 3, True, False), (768, 1024, 3, False, True)),
)
"""Architecture -> stages.

A `Stage` is channels in, channels out, number of blocks, whether blocks add their input, whether it begins
with spatial pyramid pooling.
"""


def convolution(norm_cfg: Mapping[str, Any], act_cfg: Mapping[str, Any], use_depthwise: bool = False) -> Any:
    module_class = DepthwiseSeparableConvModule if use_depthwise else ConvModule
    return functools.partial(module_class, norm_cfg=dict(norm_cfg), act_cfg=dict(act_cfg))


class CSPNeXtBlock(nn.Module):
    """A 3x3 convolution and a depth-wise separable 5x5; `add_identity` adds the input."""

    def __init__(self, channels: int, add_identity: bool, use_depthwise: bool, **layers: Any) -> None:
        super().__init__()
        self.conv1 = convolution(**layers, use_depthwise=use_depthwise)(channels, channels, 3, padding=1)
        separable = convolution(**layers, use_depthwise=True)
        self.conv2 = separable(channels, channels, KERNEL, padding=KERNEL // 2)
        self.add_identity = add_identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        return out + x if self.add_identity else out


class ChannelAttention(nn.Module):
    """Each of `channels` channels times a weight made of all means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # two steps: one long sum is off, see graphs/passes/norms.py
        means = x.mean(3, keepdim=True).mean(2, keepdim=True)
        return x * nn.functional.hardsigmoid(self.fc(means))


class CSPNeXtLayer(CSPLayer):
    """mmdet's cross stage partial layer with `CSPNeXtBlock`s."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        expand_ratio: float = 0.5,
        add_identity: bool = True,
        channel_attention: bool = False,
        use_depthwise: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, expand_ratio, num_blocks=0, **layers)
        inside = self.main_conv.out_channels
        blocks = [CSPNeXtBlock(inside, add_identity, use_depthwise, **layers) for _ in range(num_blocks)]
        self.blocks = nn.Sequential(*blocks)
        self.attention = ChannelAttention(2 * inside) if channel_attention else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, h, w) of maps (B, in_channels, h, w)."""
        both = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1)
        return self.final_conv(self.attention(both))


@registered_if_named(BACKBONES)
class CSPNeXt(BaseModule):
    """A stem of stride 2 and four or five stages of stride 2."""

    def __init__(
        self,
        arch: str = 'P5',
        deepen_factor: float = 1.0,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (2, 3, 4),
        frozen_stages: int = -1,
        use_depthwise: bool = False,
        expand_ratio: float = 0.5,
        spp_kernel_sizes: Sequence[int] = (5, 9, 13),
        channel_attention: bool = True,
        norm_cfg: Mapping[str, Any] = NORM,
        act_cfg: Mapping[str, Any] = SILU,
        norm_eval: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in ARCHITECTURES:
            raise ConfigError(f'model.backbone.arch={arch!r}; expected one of {", ".join(ARCHITECTURES)}')
        stages = ARCHITECTURES[arch]
        wrong = [index for index in out_indices if not 0 <= index <= len(stages)]
        if wrong:
            raise ConfigError(f'model.backbone.out_indices has {wrong[0]}; expected 0 to {len(stages)}')
        layers = dict(norm_cfg=dict(norm_cfg), act_cfg=dict(act_cfg))
        conv, first = convolution(**layers), int(stages[0][0] * widen_factor)
        half = int(stages[0][0] * widen_factor // 2)
        self.stem = nn.Sequential(
            conv(3, half, 3, stride=2, padding=1),
            conv(half, half, 3, padding=1),
            conv(half, first, 3, padding=1),
        )
        self.layers = ['stem']
        down = convolution(**layers, use_depthwise=use_depthwise)
        for index, (before, after, blocks, identity, pools) in enumerate(stages, 1):
            before, after = int(before * widen_factor), int(after * widen_factor)
            stage = [down(before, after, 3, stride=2, padding=1)]
            if pools:
                stage.append(SPPBottleneck(after, after, tuple(spp_kernel_sizes), **layers))
            count = max(round(blocks * deepen_factor), 1)
            settings = (after, after, count, expand_ratio, identity, channel_attention, use_depthwise)
            stage.append(CSPNeXtLayer(*settings, **layers))
            self.add_module(f'stage{index}', nn.Sequential(*stage))
            self.layers.append(f'stage{index}')
        self.out_indices = tuple(out_indices)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps (B, C, h, w) of `out_indices`, fine to coarse, of images (B, 3, H, W)."""
        maps = []
        for index, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)


NEAREST = dict(scale_factor=2, mode='nearest')


@registered_if_named(NECKS)
class CSPNeXtPAFPN(YOLOXPAFPN):
    """The path aggregation of mmdet's YOLOX with `CSPNeXtLayer`s, and 3x3 convolutions at its end.

    `forward` returns maps (B, out_channels, h, w) of maps (B, in_channels, h, w).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_csp_blocks: int = 3,
        use_depthwise: bool = False,
        expand_ratio: float = 0.5,
        upsample_cfg: Mapping[str, Any] = NEAREST,
        norm_cfg: Mapping[str, Any] = NORM,
        act_cfg: Mapping[str, Any] = SILU,
        init_cfg: Any = None,
    ) -> None:
        layers = dict(norm_cfg=dict(norm_cfg), act_cfg=dict(act_cfg))
        super().__init__(
            list(in_channels), out_channels, 0, use_depthwise, dict(upsample_cfg), **layers, init_cfg=init_cfg
        )
        conv = convolution(**layers, use_depthwise=use_depthwise)
        pairs = list(itertools.pairwise(in_channels))

        def layer(before: int, after: int) -> CSPNeXtLayer:
            blocks = dict(num_blocks=num_csp_blocks, expand_ratio=expand_ratio, add_identity=False)
            return CSPNeXtLayer(before, after, **blocks, use_depthwise=use_depthwise, **layers)

        self.top_down_blocks = nn.ModuleList(layer(2 * fine, fine) for fine, _ in reversed(pairs))
        self.bottom_up_blocks = nn.ModuleList(layer(2 * fine, coarse) for fine, coarse in pairs)
        self.out_convs = nn.ModuleList(conv(channels, out_channels, 3, padding=1) for channels in in_channels)


POINTS = dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32])
DISTANCES = dict(type='DistancePointBBoxCoder')
TRAINS = 'RTMDet cannot train here; use mmdet 3'


@registered_if_named(DETECTORS)
class RTMDet(SingleStageDetector):
    """A detector of one stage; `use_syncbn` is unused."""

    def __init__(self, *args: Any, use_syncbn: bool = True, **parts: Any) -> None:
        super().__init__(*args, **parts)


@registered_if_named(HEADS)
class RTMDetSepBNHead(BaseDenseHead, BBoxTestMixin):
    """Class logits and distances of each level; levels may share convolutions, not norms."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        share_conv: bool = True,
        use_depthwise: bool = False,
        with_objectness: bool = True,
        exp_on_reg: bool = False,
        pred_kernel_size: int = 1,
        anchor_generator: Mapping[str, Any] = POINTS,
        bbox_coder: Mapping[str, Any] = DISTANCES,
        norm_cfg: Mapping[str, Any] = NORM,
        act_cfg: Mapping[str, Any] = SILU,
        train_cfg: Any = None,
        test_cfg: Any = None,
        init_cfg: Any = None,
        loss_cls: Any = None,
        loss_bbox: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if not dict(loss_cls or {}).get('use_sigmoid', True):
            raise ConfigError('model.bbox_head.loss_cls.use_sigmoid=False: RTMDet has sigmoid scores')
        if share_conv and use_depthwise:
            raise ConfigError('model.bbox_head: share_conv=True requires use_depthwise=False')
        self.num_classes = self.cls_out_channels = num_classes
        self.use_sigmoid_cls, self.exp_on_reg, self.test_cfg = True, exp_on_reg, test_cfg
        self.prior_generator = build_prior_generator(dict(anchor_generator))
        self.bbox_coder = build_bbox_coder(dict(bbox_coder))
        self.conv = convolution(norm_cfg, act_cfg, use_depthwise)
        self.channels = [in_channels] + [feat_channels] * stacked_convs
        self.pred_kernel_size = pred_kernel_size
        self.cls_convs, self.reg_convs = self.branch(share_conv), self.branch(share_conv)
        self.rtm_cls, self.rtm_reg = self.last(num_classes), self.last(4)
        self.rtm_obj = self.last(1) if with_objectness else None

    def branch(self, share_conv: bool) -> nn.ModuleList:
        """Return the layers of every level before the last."""
        branches = [
            nn.ModuleList(self.conv(*pair, 3, padding=1) for pair in itertools.pairwise(self.channels))
            for _ in self.prior_generator.strides
        ]
        if share_conv:
            for layers in branches:
                for layer, first in zip(layers, branches[0], strict=True):
                    layer.conv = first.conv
        return nn.ModuleList(branches)

    def last(self, columns: int) -> nn.ModuleList:
        """Return the last layer of every level; `columns` of each prior."""
        size, priors = self.pred_kernel_size, self.prior_generator.num_base_priors
        return nn.ModuleList(
            nn.Conv2d(self.channels[-1], count * columns, size, padding=size // 2) for count in priors
        )

    def lengths(self, sides: torch.Tensor) -> torch.Tensor:
        """Return distances in strides of the last layer's outputs."""
        return sides.exp() if self.exp_on_reg else sides

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return class logits (B, C, h, w) and distances in pixels (B, 4, h, w) of every level.

        `feats` are (B, in_channels, h, w).
        """
        scores, distances = [], []
        for level, (features, stride) in enumerate(zip(feats, self.prior_generator.strides, strict=True)):
            classes = boxes = features
            for layer in self.cls_convs[level]:
                classes = layer(classes)
            for layer in self.reg_convs[level]:
                boxes = layer(boxes)
            logits, sides = self.rtm_cls[level](classes), self.rtm_reg[level](boxes)
            if self.rtm_obj is not None:
                logits = inverse_sigmoid((logits.sigmoid() * self.rtm_obj[level](boxes).sigmoid()).sqrt())
            scores.append(logits)
            distances.append(self.lengths(sides) * stride[0])
        return scores, distances

    def loss(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(TRAINS)


FCOSHead = mmdet_module('mmdet.models.dense_heads').FCOSHead
MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator

RELU = dict(type='ReLU', inplace=True)
REACH = 8
"""Strides of an instance's level in one unit of its coordinates."""
ROUNDED = 1e-2
"""Pixels beyond a whole number of lines that are no further line."""


def num_parameters(features: int, channels: int, layers: int) -> int:
    """K: weights and biases of 1x1 layers from features and two coordinates to one logit."""
    return (features + 2) * channels + (layers - 2) * channels**2 + channels + (layers - 1) * channels + 1


def mask_logits(
    features: torch.Tensor,
    parameters: torch.Tensor,
    points: torch.Tensor,
    cells: torch.Tensor,
    channels: int,
    layers: int,
    reach: int = REACH,
) -> torch.Tensor:
    """Return logits (B, n, h, w) of instances.

    Args:
        features: (B, P, h, w).
        parameters: (B, n, K): weights of all layers, then their biases.
        points: (B, n, 3): x, y of the instance's cell and its stride, pixels.
        cells: (h * w, 2) x, y of the features, pixels.
        channels: outputs of each layer but the last.
        layers: number of layers.
        reach: strides in one unit of the coordinates.
    """
    relative = (points[:, :, None, :2] - cells) / (points[:, :, None, 2:] * reach)
    flat = features.flatten(2)[:, None].expand(-1, points.shape[1], -1, -1)
    x = torch.cat([relative.transpose(2, 3), flat], 2)
    sizes = [features.shape[1] + 2, *[channels] * (layers - 1), 1]
    weights = [before * after for before, after in itertools.pairwise(sizes)]
    parts = parameters.split([*weights, *sizes[1:]], 2)
    for index, (weight, bias) in enumerate(zip(parts[:layers], parts[layers:], strict=True)):
        x = weight.unflatten(2, (sizes[index + 1], sizes[index])) @ x + bias[..., None]
        x = x.relu() if index < layers - 1 else x
    return x.squeeze(2).unflatten(2, features.shape[2:])


def aligned_bilinear(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """Enlarge maps (B, n, h, w) so that the centres of their first cells stay."""
    if factor == 1:
        return maps
    height, width = (factor * size + 1 for size in maps.shape[2:])
    wide = F.pad(maps, (0, 1, 0, 1), mode='replicate')
    wide = F.interpolate(wide, size=(height, width), mode='bilinear', align_corners=True)
    wide = F.pad(wide, (factor // 2, 0, factor // 2, 0), mode='replicate')
    return wide[:, :, : height - 1, : width - 1]


class InstanceMaskDetector(SingleStageDetector):
    """A dense detector with masks of instances.

    Attributes:
        scales_first: boxes are in pixels of the original before the suppression, else after it.
        threshold: key of `test_cfg`: probability that a pixel of a mask exceeds.
    """

    scales_first: ClassVar[bool]
    threshold: ClassVar[str]

    def layers_of_masks(self) -> dict[str, Any]:
        """Arguments of `mask_logits` that do not depend on the image."""
        raise NotImplementedError

    def maps(self, image: torch.Tensor) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        """Return logits, distances, perhaps centreness, parameters (L maps each); features (B, P, h, w).

        `image` is (B, 3, H, W), normalised.
        """
        raise NotImplementedError

    def cells(self, features: torch.Tensor) -> torch.Tensor:
        """Return x, y (h * w, 2) of the cells of mask features, pixels."""
        raise NotImplementedError

    def masks(self, logits: torch.Tensor, meta: Mapping[str, Any]) -> torch.Tensor:
        """Return masks (n, height, width) bool of the original image of logits (1, n, h, w)."""
        raise NotImplementedError

    def simple_test(
        self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]], rescale: bool = False
    ) -> list[tuple[list[Any], list[list[Any]]]]:
        """Return arrays (n, 5) xyxy score and masks per class of each image, pixels of the original."""
        outputs, features = self.maps(img)
        return [
            self.results([[level[index] for level in levels] for levels in outputs], features[index], meta)
            for index, meta in enumerate(img_metas)
        ]

    def results(
        self, outputs: list[list[torch.Tensor]], features: torch.Tensor, meta: Mapping[str, Any]
    ) -> tuple[list[Any], list[list[Any]]]:
        """Return `simple_test`'s result of one image, its maps without the batch axis."""
        head, cfg = self.bbox_head, self.test_cfg
        logits, distances, *centres, parameters = outputs
        found = []
        for level, maps in enumerate(zip(logits, distances, parameters, *centres, strict=True)):
            points = head.prior_generator.single_level_grid_priors(
                maps[0].shape[1:], level, device=features.device
            )
            rows = [of_level.permute(1, 2, 0).flatten(0, 1) for of_level in maps]
            scores, labels, kept, _ = filter_scores_and_topk(
                rows[0].sigmoid(), cfg.score_thr, cfg.get('nms_pre', -1)
            )
            points = points[kept]
            boxes = head.bbox_coder.decode(points, rows[1][kept], max_shape=meta['img_shape'])
            if centres:
                scores = scores * rows[3][kept, 0].sigmoid()
            stride = torch.full_like(points[:, :1], head.prior_generator.strides[level][0])
            found.append((boxes, scores, labels, torch.cat([rows[2][kept], points, stride], 1)))
        boxes, scores, labels, rest = (torch.cat(parts) for parts in zip(*found, strict=True))
        scale = boxes.new_tensor(meta['scale_factor'])
        boxes = boxes / scale if self.scales_first else boxes
        if (smallest := cfg.get('min_bbox_size', -1)) >= 0:
            wide = ((boxes[:, 2:] - boxes[:, :2]) > smallest).all(1)
            boxes, scores, labels, rest = boxes[wide], scores[wide], labels[wide], rest[wide]
        height, width = meta['ori_shape'][:2]
        masks = torch.zeros(0, height, width, dtype=torch.bool)
        dets = boxes.new_zeros(0, 5)
        if len(boxes):
            dets, kept = batched_nms(boxes, scores, labels, dict(cfg.nms))
            dets, kept = dets[: cfg.max_per_img], kept[: cfg.max_per_img]
            dets = dets if self.scales_first else torch.cat([dets[:, :4] / scale, dets[:, 4:]], 1)
            labels, rest, features = labels[kept], rest[kept][None], features[None]
            logits = mask_logits(
                features, rest[..., :-3], rest[..., -3:], self.cells(features), **self.layers_of_masks()
            )
            masks = self.masks(logits, meta)
        return self.of_classes(dets, labels[: len(dets)], masks)

    def of_classes(
        self, dets: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
    ) -> tuple[list[Any], list[list[Any]]]:
        by_class = [[] for _ in range(self.bbox_head.num_classes)]
        for label, mask in zip(labels.tolist(), masks.cpu().numpy(), strict=True):
            by_class[label].append(mask)
        return bbox2result(dets, labels, len(by_class)), by_class


class FusedFeatures(nn.Module):
    """All levels at the size of the finest, and convolutions: the mask features of RTMDet-Ins."""

    def __init__(self, levels: int, in_channels: int, channels: int, outputs: int, conv: Any) -> None:
        super().__init__()
        self.fusion_conv = nn.Conv2d(levels * in_channels, in_channels, 1)
        sizes = [in_channels, *[channels] * 4]
        self.stacked_convs = nn.Sequential(*(conv(*pair, 3, padding=1) for pair in itertools.pairwise(sizes)))
        self.projection = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        first, *others = maps
        wide = [F.interpolate(other, size=first.shape[-2:], mode='bilinear') for other in others]
        return self.projection(self.stacked_convs(self.fusion_conv(torch.cat([first, *wide], 1))))


@registered_if_named(HEADS)
class RTMDetInsSepBNHead(RTMDetSepBNHead):
    """RTMDet's head with parameters of masks; boxes and classes have the same layers but the last."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_prototypes: int = 8,
        dyconv_channels: int = 8,
        num_dyconvs: int = 3,
        share_conv: bool = True,
        with_objectness: bool = False,
        norm_cfg: Mapping[str, Any] = NORM,
        loss_mask: Any = None,
        mask_loss_stride: int = 4,
        **kwargs: Any,
    ) -> None:
        objectness = dict(share_conv=share_conv, with_objectness=with_objectness)
        super().__init__(num_classes, in_channels, norm_cfg=norm_cfg, **objectness, **kwargs)
        self.layers = dict(channels=dyconv_channels, layers=num_dyconvs)
        self.reg_convs = nn.ModuleList(self.cls_convs)
        self.kernel_convs = self.branch(share_conv=False)
        self.rtm_kernel = self.last(num_parameters(num_prototypes, **self.layers))
        levels = len(self.prior_generator.strides)
        self.mask_head = FusedFeatures(levels, in_channels, self.channels[-1], num_prototypes, self.conv)

    def lengths(self, sides: torch.Tensor) -> torch.Tensor:
        return sides.relu()

    def forward(self, feats: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """Return logits, distances, parameters (B, columns, h, w) of every level; features (B, P, h, w)."""
        scores, distances = super().forward(feats)
        kernels = []
        for x, layers, last in zip(feats, self.kernel_convs, self.rtm_kernel, strict=True):
            for layer in layers:
                x = layer(x)
            kernels.append(last(x))
        return scores, distances, kernels, self.mask_head(feats)


@registered_if_named(DETECTORS)
class RTMDetIns(InstanceMaskDetector):
    """RTMDet with instance masks; `use_syncbn` is unused."""

    scales_first, threshold = True, 'mask_thr_binary'

    def __init__(self, *args: Any, use_syncbn: bool = True, **parts: Any) -> None:
        super().__init__(*args, **parts)

    def layers_of_masks(self) -> dict[str, Any]:
        return self.bbox_head.layers

    def maps(self, image: torch.Tensor) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        *outputs, features = self.bbox_head(self.extract_feat(image))
        return outputs, features

    def cells(self, features: torch.Tensor) -> torch.Tensor:
        generator = self.bbox_head.prior_generator
        return generator.single_level_grid_priors(features.shape[2:], 0, device=features.device)

    def masks(self, logits: torch.Tensor, meta: Mapping[str, Any]) -> torch.Tensor:
        stride = self.bbox_head.prior_generator.strides[0][0]
        wide = F.interpolate(logits, scale_factor=stride, mode='bilinear')
        height, width = meta['ori_shape'][:2]
        wide = F.interpolate(wide, size=mask_size(wide.shape[2:], meta['scale_factor']), mode='bilinear')[0]
        masks = wide[:, :height, :width].sigmoid() > self.test_cfg[self.threshold]
        return F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))


def mask_size(input_hw: Sequence[int], scale_factor: Sequence[float]) -> list[int]:
    """Height and width to which mmdet 3 resizes masks of RTMDet-Ins before it crops them to the original.

    It divides the height by the factor of the width, the width by that of the height, and rounds up. Where
    that gives a whole number its rounding errors decide, and `ROUNDED` here.
    """
    pairs = zip(input_hw, scale_factor, strict=False)
    sizes = [torch.as_tensor(side) / torch.as_tensor(factor) for side, factor in pairs]
    return [int(torch.ceil(size - ROUNDED)) for size in sizes]


@registered_if_named(HEADS)
class CondInstBboxHead(FCOSHead):
    """FCOS's head with parameters of masks."""

    def __init__(self, *args: Any, num_params: int = 169, **kwargs: Any) -> None:
        self.num_params = num_params
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.controller = nn.Conv2d(self.feat_channels, self.num_params, 3, padding=1)

    def forward_single(self, x: torch.Tensor, scale: nn.Module, stride: int) -> tuple[torch.Tensor, ...]:
        """Return logits, distances in pixels, centreness logits and parameters (B, columns, h, w)."""
        outputs = super().forward_single(x, scale, stride)
        for layer in self.reg_convs:
            x = layer(x)
        return *outputs, self.controller(x)


@registered_if_named(HEADS)
class BoxInstBboxHead(CondInstBboxHead):
    """CondInst's head."""


class SummedFeatures(BaseModule):
    """The sum of levels at the size of the finest, and convolutions: the mask features of CondInst."""

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        start_level: int,
        end_level: int,
        out_channels: int,
        mask_stride: int = 4,
        num_stacked_convs: int = 4,
        conv_cfg: Any = None,
        norm_cfg: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.used, self.mask_stride = slice(start_level, end_level + 1), mask_stride
        self.out_channels, layers = out_channels, dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, bias=False)
        self.convs_all_levels = nn.ModuleList()
        for level in range(start_level, end_level + 1):
            conv = ConvModule(in_channels, feat_channels, 3, padding=1, inplace=False, **layers)
            self.convs_all_levels.append(nn.Sequential())
            self.convs_all_levels[-1].add_module(f'conv{level}', conv)
        self.conv_branch = nn.Sequential(
            *(
                ConvModule(feat_channels, feat_channels, 3, padding=1, **layers)
                for _ in range(num_stacked_convs)
            )
        )
        self.conv_pred = nn.Conv2d(feat_channels, out_channels, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (B, P, h, w) of the neck's maps."""
        first, *others = (
            conv(level) for conv, level in zip(self.convs_all_levels, maps[self.used], strict=True)
        )
        total = first
        for index, other in enumerate(others, 1):
            total = total + aligned_bilinear(other, 2**index)
        return self.conv_pred(self.conv_branch(total))


@registered_if_named(HEADS)
class CondInstMaskHead(BaseModule):
    """Mask features, and the sizes of an instance's layers; the rest of its settings is for the training."""

    def __init__(
        self,
        mask_feature_head: Mapping[str, Any],
        num_layers: int = 3,
        feat_channels: int = 8,
        mask_out_stride: int = 4,
        size_of_interest: int = REACH,
        init_cfg: Any = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.mask_feature_head = SummedFeatures(**mask_feature_head)
        self.layers = dict(channels=feat_channels, layers=num_layers, reach=size_of_interest)
        self.mask_out_stride = mask_out_stride
        self.prior_generator = MlvlPointGenerator([self.mask_feature_head.mask_stride])

    @property
    def ratio(self) -> int:
        """Cells of a mask per cell of the features."""
        return int(self.mask_feature_head.mask_stride / self.mask_out_stride)


@registered_if_named(HEADS)
class BoxInstMaskHead(CondInstMaskHead):
    """CondInst's mask head."""


@registered_if_named(DETECTORS)
class CondInst(InstanceMaskDetector):
    """FCOS with instance masks."""

    scales_first, threshold = False, 'mask_thr'

    def __init__(self, *args: Any, mask_head: Mapping[str, Any], **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.mask_head = build_head(dict(mask_head))

    def layers_of_masks(self) -> dict[str, Any]:
        return self.mask_head.layers

    def maps(self, image: torch.Tensor) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        maps = self.extract_feat(image)
        return list(self.bbox_head(maps)), self.mask_head.mask_feature_head(maps)

    def cells(self, features: torch.Tensor) -> torch.Tensor:
        generator = self.mask_head.prior_generator
        return generator.single_level_grid_priors(features.shape[2:], 0, device=features.device)

    def masks(self, logits: torch.Tensor, meta: Mapping[str, Any]) -> torch.Tensor:
        soft = aligned_bilinear(logits, self.mask_head.ratio).sigmoid()
        height, width = meta['img_shape'][:2]
        soft = aligned_bilinear(soft, self.mask_head.mask_out_stride)[:, :, :height, :width]
        masks = F.interpolate(soft, size=tuple(meta['ori_shape'][:2]), mode='bilinear')[0]
        return masks > self.test_cfg[self.threshold]


@registered_if_named(DETECTORS)
class BoxInst(CondInst):
    """CondInst, trained with boxes."""
