"""CSPNeXt, the backbone of RTMDet. Source of its names and settings: mmdet 3.3.0 `backbones/cspnext.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.catalogue import offered
from mmdeploy_ext.models.rtmdet.csp import NORM, SILU, CSPNeXtLayer, convolution

SPPBottleneck = mmdet_module('mmdet.models.backbones.csp_darknet').SPPBottleneck

Stage = tuple[int, int, int, bool, bool]
FINE = ((64, 128, 3, True, False), (128, 256, 6, True, False), (256, 512, 6, True, False))
ARCHITECTURES: dict[str, tuple[Stage, ...]] = dict(
    P5=(*FINE, (512, 1024, 3, False, True)),
    P6=(*FINE, (512, 768, 3, True, False), (768, 1024, 3, False, True)),
)
"""Channels in, channels out, blocks, whether blocks add their input, whether the stage begins with SPP."""


@offered(BACKBONES)
class CSPNeXt(BaseModule):
    """A stem of stride 2 and four or five stages that halve the size, each with a layer of blocks."""

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
        """Build it, of the settings of mmdet 3.

        The factors are of the number of blocks and of the channels; `out_indices` are stages whose maps are
        returned, 0 the stem, which does not learn with so many `frozen_stages`, -1: all do; with
        `use_depthwise` 3x3 convolutions are separable; with `norm_eval` statistics of normalisation stay
        while it learns.

        Raises:
            ConfigError: an architecture or a stage that there is not.
        """
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
        for place, (before, after, blocks, identity, pools) in enumerate(stages, 1):
            before, after = int(before * widen_factor), int(after * widen_factor)
            stage = [down(before, after, 3, stride=2, padding=1)]
            if pools:
                stage.append(SPPBottleneck(after, after, tuple(spp_kernel_sizes), **layers))
            count = max(round(blocks * deepen_factor), 1)
            settings = (after, after, count, expand_ratio, identity, channel_attention, use_depthwise)
            stage.append(CSPNeXtLayer(*settings, **layers))
            self.add_module(f'stage{place}', nn.Sequential(*stage))
            self.layers.append(f'stage{place}')
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of `out_indices` of images (B, 3, H, W)."""
        maps = []
        for place, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if place in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen stages stay as they are, and normalisation with `norm_eval`."""
        super().train(mode)
        for name in self.layers[: self.frozen_stages + 1]:
            stage = getattr(self, name).eval()
            stage.requires_grad_(requires_grad=False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
