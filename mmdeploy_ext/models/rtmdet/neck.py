"""CSPNeXtPAFPN, the neck of RTMDet. Source of names and settings: mmdet 3.3.0 `necks/cspnext_pafpn.py`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.builder import NECKS
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.models.catalogue import offered
from mmdeploy_ext.models.rtmdet.csp import NORM, SILU, CSPNeXtLayer, convolution

YOLOXPAFPN = mmdet_module('mmdet.models.necks').YOLOXPAFPN

NEAREST = dict(scale_factor=2, mode='nearest')


@offered(NECKS)
class CSPNeXtPAFPN(YOLOXPAFPN):
    """The path aggregation of mmdet's YOLOX with `CSPNeXtLayer`s, and 3x3 convolutions at its end."""

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
        """Build it, of the settings of mmdet 3: maps go from fine to coarse."""
        layers = dict(norm_cfg=dict(norm_cfg), act_cfg=dict(act_cfg))
        super().__init__(
            list(in_channels), out_channels, 0, use_depthwise, dict(upsample_cfg), **layers, init_cfg=init_cfg
        )
        conv = convolution(**layers, use_depthwise=use_depthwise)
        pairs = list(itertools.pairwise(in_channels))

        def layer(before: int, after: int) -> CSPNeXtLayer:
            return CSPNeXtLayer(
                before,
                after,
                num_csp_blocks,
                expand_ratio,
                add_identity=False,
                use_depthwise=use_depthwise,
                **layers,
            )

        self.top_down_blocks = nn.ModuleList(layer(2 * fine, fine) for fine, _ in reversed(pairs))
        self.bottom_up_blocks = nn.ModuleList(layer(2 * fine, coarse) for fine, coarse in pairs)
        self.out_convs = nn.ModuleList(conv(channels, out_channels, 3, padding=1) for channels in in_channels)
