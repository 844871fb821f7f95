"""CPFPN: a feature pyramid with an output convolution on the finest level alone.

Source: exiawsh/StreamPETR 95f6470, models/necks/cp_fpn.py, with its parameter names.
"""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmcv.runner import BaseModule
from mmdet.models import NECKS
from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(NECKS)
class CPFPN(BaseModule):
    """Top-down pyramid; only the finest level passes through a 3x3 convolution."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        if num_outs != len(in_channels):
            raise ConfigError(
                f'CPFPN: num_outs is {num_outs}, but there are {len(in_channels)} input levels; '
                'extra levels are not supported'
            )
        options = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, **options) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList([ConvModule(out_channels, out_channels, 3, padding=1, **options)])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return maps (B, out_channels, h, w), the finest first, of maps (B, in_channels, h, w)."""
        levels = [lateral(level) for lateral, level in zip(self.lateral_convs, inputs, strict=True)]
        for index in range(len(levels) - 2, -1, -1):
            finer, coarser = levels[index], levels[index + 1]
            levels[index] = finer + functional.interpolate(coarser, size=finer.shape[2:], mode='nearest')
        return (self.fpn_convs[0](levels[0]), *levels[1:])
