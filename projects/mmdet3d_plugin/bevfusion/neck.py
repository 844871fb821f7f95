"""The neck between BEVFusion's image backbone and its view transform.

Glossary: S images, C channels, h, w cells of a level.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models.builder import NECKS
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError

BILINEAR = dict(mode='bilinear', align_corners=False)


@NECKS.register_module()
class GeneralizedLSSFPN(nn.Module):
    """Levels from the coarsest down: the map above is enlarged, joined, and convolved by 1x1 and 3x3.

    Args:
        in_channels: of the backbone's levels, the finest first; the last two are joined first.
        out_channels: C.
        num_outs, start_level: of upstream's configs; the levels are those of the backbone, from the first.
        norm_cfg, act_cfg: of both convolutions.
        upsample_cfg: of the enlargement, to the size of the level below.

    Source: mit-han-lab/bevfusion db75150, models/necks/generalized_lss.py.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 0,
        start_level: int = 0,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
        upsample_cfg: Mapping[str, Any] = BILINEAR,
    ) -> None:
        super().__init__()
        if start_level:
            raise ConfigError(f'GeneralizedLSSFPN: start_level={start_level}; expected 0')
        options = dict(norm_cfg=norm_cfg or dict(type='BN2d'), act_cfg=act_cfg or dict(type='ReLU'))
        self.upsample_cfg = dict(upsample_cfg)
        self.lateral_convs, self.fpn_convs = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(in_channels[:-1]):
            above = in_channels[-1] if level == len(in_channels) - 2 else out_channels
            self.lateral_convs.append(ConvModule(channels + above, out_channels, 1, **options))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, padding=1, **options))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return (S, C, h, w) of every level but the last, the finest first."""
        found = list(maps)
        for level in reversed(range(len(found) - 1)):
            above = nn.functional.interpolate(
                found[level + 1], size=found[level].shape[2:], **self.upsample_cfg
            )
            joined = self.lateral_convs[level](torch.cat([found[level], above], dim=1))
            found[level] = self.fpn_convs[level](joined)
        return tuple(found[:-1])
