"""RTMDet: CSPNeXt, its neck, head and detector, with mmdet 3's names of parameters and settings.

Source: mmdet 3.3.0 `backbones/cspnext.py`, `layers/{csp_layer,se_layer}.py`, `necks/cspnext_pafpn.py`,
`dense_heads/rtmdet_head.py`.

Glossary: B images, H, W pixels of an image, C channels, or classes of logits, h, w cells of a map.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmcv.runner import BaseModule
from mmdet.core import build_bbox_coder
from mmdet.models.builder import BACKBONES, DETECTORS, HEADS, NECKS
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.dense_test_mixins import BBoxTestMixin
from mmdet.models.detectors import SingleStageDetector
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

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
