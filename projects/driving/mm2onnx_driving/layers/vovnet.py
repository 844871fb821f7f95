"""VoVNetV2: modules that concatenate all their layers once (one-shot aggregation), and channel attention.

Source: Lee and Park, CenterMask (2020), and youngwanLEE/vovnet-detectron2, with the checkpoints' parameter
names (`stem.stem_1/conv.weight`, `stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight`).
Glossary: B images, H, W pixels of an image, C channels, h, w cells of a map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.runner import BaseModule
from mmdet.models import BACKBONES, NECKS
from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# CPFPN: a feature pyramid with an output convolution on the finest level alone.
#
# Source: exiawsh/StreamPETR 95f6470, models/necks/cp_fpn.py, with its parameter names.


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


STAGES = ('stage2', 'stage3', 'stage4', 'stage5')
"""Names of the stages for `out_features`, beside 'stem'."""


class Spec(NamedTuple):
    """One architecture.

    Attributes:
        stem: output channels of the stem's three convolutions.
        layer_channels, out_channels: per stage, channels of its modules' layers, and of its output.
        layers: layers of a module.
        modules: modules of each stage.
        depthwise: layers, and the stem's second and third convolution, are separable.
    """

    stem: tuple[int, int, int]
    layer_channels: tuple[int, int, int, int]
    out_channels: tuple[int, int, int, int]
    layers: int
    modules: tuple[int, int, int, int]
    depthwise: bool = False


_WIDE = ((128, 160, 192, 224), (256, 512, 768, 1024))
"""`layer_channels` and `out_channels` of most architectures."""
_SLIM = ((64, 80, 96, 112), (112, 256, 384, 512))
"""The same of the slim ones."""
SPECS = {
    'V-19-slim-dw-eSE': Spec((64, 64, 64), *_SLIM, 3, (1, 1, 1, 1), depthwise=True),
    'V-19-dw-eSE': Spec((64, 64, 64), *_WIDE, 3, (1, 1, 1, 1), depthwise=True),
    'V-19-slim-eSE': Spec((64, 64, 128), *_SLIM, 3, (1, 1, 1, 1)),
    'V-19-eSE': Spec((64, 64, 128), *_WIDE, 3, (1, 1, 1, 1)),
    'V-39-eSE': Spec((64, 64, 128), *_WIDE, 5, (1, 1, 2, 2)),
    'V-57-eSE': Spec((64, 64, 128), *_WIDE, 5, (1, 1, 4, 3)),
    'V-99-eSE': Spec((64, 64, 128), *_WIDE, 5, (1, 3, 9, 3)),
}


def conv_unit(inputs: int, outputs: int, name: str, kernel: int = 3, stride: int = 1) -> OrderedDict:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return OrderedDict(
        {f'{name}/conv': conv, f'{name}/norm': nn.BatchNorm2d(outputs), f'{name}/relu': nn.ReLU(inplace=True)}
    )


def depthwise_unit(inputs: int, outputs: int, name: str, stride: int = 1) -> OrderedDict:
    return OrderedDict(
        {
            f'{name}/dw_conv3x3': nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            f'{name}/pw_conv1x1': nn.Conv2d(inputs, outputs, 1, bias=False),
            f'{name}/pw_norm': nn.BatchNorm2d(outputs),
            f'{name}/pw_relu': nn.ReLU(inplace=True),
        }
    )


class ESE(nn.Module):
    """Scale channels by a hard sigmoid of their means ("effective squeeze and excitation")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * (F.relu6(self.fc(F.adaptive_avg_pool2d(x, 1)) + 3.0) / 6.0)


class OSAModule(nn.Module):
    """Layers in a row; outputs and input are concatenated once and mixed by a 1x1 convolution."""

    def __init__(
        self,
        inputs: int,
        layer_channels: int,
        outputs: int,
        layers: int,
        name: str,
        identity: bool,
        depthwise: bool,
    ) -> None:
        super().__init__()
        self.identity = identity
        self.conv_reduction = None
        width = inputs
        if depthwise and inputs != layer_channels:
            self.conv_reduction = nn.Sequential(
                conv_unit(inputs, layer_channels, f'{name}_reduction_0', kernel=1)
            )
            width = layer_channels
        unit = depthwise_unit if depthwise else conv_unit
        widths = [width] + [layer_channels] * (layers - 1)
        self.layers = nn.ModuleList(
            nn.Sequential(unit(w, layer_channels, f'{name}_{i}')) for i, w in enumerate(widths)
        )
        self.concat = nn.Sequential(
            conv_unit(inputs + layers * layer_channels, outputs, f'{name}_concat', kernel=1)
        )
        self.ese = ESE(outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = x if self.conv_reduction is None else self.conv_reduction(x)
        for layer in self.layers:
            y = layer(y)
            parts.append(y)
        y = self.ese(self.concat(torch.cat(parts, dim=1)))
        return y + x if self.identity else y


@registered_if_named(BACKBONES)
class VoVNet(BaseModule):
    """VoVNetV2 backbone.

    Args:
        spec_name: a key of `SPECS`, such as 'V-99-eSE'.
        input_ch: channels of the image.
        out_features: maps to return: 'stem' (stride 4), 'stage2' (4) ... 'stage5' (32).
        frozen_stages, norm_eval, with_cp: unused.
        pretrained: path of a checkpoint, the older form of `init_cfg`.
        init_cfg: mmcv's.
    """

    def __init__(
        self,
        spec_name: str,
        input_ch: int = 3,
        out_features: tuple[str, ...] = STAGES,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(dict(type='Pretrained', checkpoint=pretrained) if pretrained else init_cfg)
        unknown = sorted(set(out_features or ()) - {'stem', *STAGES})
        if spec_name not in SPECS:
            raise ConfigError(f'spec_name: got {spec_name!r}, expected one of {", ".join(SPECS)}')
        if unknown or not out_features:
            raise ConfigError(
                f'out_features: got {out_features!r}, expected some of stem, {", ".join(STAGES)}'
            )
        spec = SPECS[spec_name]
        self.out_features = tuple(out_features)
        self.stem = self._stem(spec, input_ch)
        inputs = (spec.stem[2], *spec.out_channels[:-1])
        for i, (name, channels) in enumerate(zip(STAGES, inputs, strict=True)):
            self.add_module(name, self._stage(spec, i, channels))

    @staticmethod
    def _stem(spec: Spec, input_ch: int) -> nn.Sequential:
        first, second, third = spec.stem
        unit = depthwise_unit if spec.depthwise else conv_unit
        return nn.Sequential(
            OrderedDict(
                {
                    **conv_unit(input_ch, first, 'stem_1', stride=2),
                    **unit(first, second, 'stem_2'),
                    **unit(second, third, 'stem_3', stride=2),
                }
            )
        )

    @staticmethod
    def _stage(spec: Spec, index: int, inputs: int) -> nn.Sequential:
        stage, outputs = nn.Sequential(), spec.out_channels[index]
        if index:
            stage.add_module('Pooling', nn.MaxPool2d(3, 2, ceil_mode=True))
        for i in range(spec.modules[index]):
            name = f'OSA{index + 2}_{i + 1}'
            stage.add_module(
                name,
                OSAModule(
                    inputs if i == 0 else outputs,
                    spec.layer_channels[index],
                    outputs,
                    spec.layers,
                    name,
                    identity=i > 0,
                    depthwise=spec.depthwise,
                ),
            )
        return stage

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of `out_features`, by stride, of images (B, input_ch, H, W)."""
        outputs = []
        for name in ('stem', *STAGES):
            x = getattr(self, name)(x)
            if name in self.out_features:
                outputs.append(x)
        return outputs


@registered_if_named(BACKBONES)
class VoVNetCP(VoVNet):
    """VoVNet under the name of the released configs."""
