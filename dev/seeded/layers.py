"""Steps of the seeded rule for layers of any network: draw weights, calibrate norms, rescale outputs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

OFFSET_LAYERS = 'conv_offset', 'offset_s', 'offset_l', 'offset_fc.4', 'offset_mask'
"""Ends of names of layers for offsets: deformable convolutions, DetectoRS, deformable pooling (tenths of a
region), and DCNv4 (with the weights of its samples).
"""
OFFSET_SCALE = 0.1
"""Offsets of about an eighth of a pixel."""

ATROUS_DIFFERENCE = 0.3
"""Deviation of DetectoRS's addition to the weights (deviation 1) of wider convolutions."""

MIN_SPREAD = 0.3
"""Smallest spread of a channel to scale up, relative to the mean of all; less is rounding."""

GATE_SCALE = 0.1
"""Scale of layers that gate channels by a map's mean, and of the context of GCNet and SAC."""


def fill_network(model: nn.Module, seed: int, residual: float) -> None:
    """Draw the weights of a network of mmcv and mmdet layers, in place.

    `residual`: weight of the last normalisation of residual blocks of ResNet, Darknet and derived classes,
    and of inverted residual blocks with a shortcut.
    """
    generator = torch.Generator().manual_seed(seed)
    _draw_weights(model, generator)
    _draw_attention(model, generator)
    for norm in _residual_norms(model):
        norm.weight.fill_(residual)


def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    for name, module in model.named_modules():
        table = getattr(module, 'relative_position_bias_table', None)
        if isinstance(table, torch.Tensor):
            table.copy_(torch.randn(table.shape, generator=generator) * 0.5)
        weight = getattr(module, 'weight', None)
        if not isinstance(weight, torch.Tensor) or weight.dim() < 2:
            continue
        scale = (2.0 / weight[0].numel()) ** 0.5
        if name.endswith(OFFSET_LAYERS):
            scale *= OFFSET_SCALE
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        if isinstance(getattr(module, 'bias', None), torch.Tensor):
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.05)
        if isinstance(getattr(module, 'weight_diff', None), torch.Tensor):
            module.weight_diff.copy_(torch.randn(weight.shape, generator=generator) * ATROUS_DIFFERENCE)


def _draw_attention(model: nn.Module, generator: torch.Generator) -> None:
    from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

    for module in model.modules():
        if isinstance(module, mmdet_module('mmdet.models.necks.ssd_neck').L2Norm):
            module.weight.fill_(float(module.scale))
        for gate in _gates_of(module):
            gate.weight.mul_(GATE_SCALE)
    for name, parameter in model.named_parameters():
        if name.endswith('in_proj_weight'):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (1.0 / parameter.shape[1]) ** 0.5)
        elif name.endswith('pos_embed'):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def _gates_of(module: nn.Module) -> list[nn.Module]:
    from mmcv.cnn import ContextBlock
    from mmcv.ops import SAConv2d

    from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

    if isinstance(module, mmdet_module('mmdet.models.utils').SELayer):
        return [module.conv2.conv]
    if isinstance(module, mmdet_module('mmdet.models.backbones.resnest').SplitAttentionConv2d):
        return [module.fc2]
    if isinstance(module, SAConv2d):
        return [module.pre_context, module.post_context]
    if isinstance(module, ContextBlock):
        branches = (module.channel_add_conv, module.channel_mul_conv)
        return [layers[-1] for layers in branches if layers is not None]
    return []


def _residual_norms(model: nn.Module) -> Iterator[nn.Module]:
    from mmdet.models.backbones.darknet import ResBlock
    from mmdet.models.backbones.resnet import BasicBlock, Bottleneck

    from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

    inverted = mmdet_module('mmdet.models.utils').InvertedResidual
    darknet = mmdet_module('mmdet.models.utils.csp_layer').DarknetBottleneck
    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            yield block.norm3 if isinstance(block, Bottleneck) else block.norm2
        elif isinstance(block, ResBlock | darknet):
            yield getattr(block.conv2, 'pointwise_conv', block.conv2).norm
        elif isinstance(block, inverted) and block.with_res_shortcut:
            yield block.linear_conv.norm


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def calibrate_norms(norms: Iterable[nn.Module], run: Callable[[], Any]) -> Any:
    """Set running statistics to the mean over a layer's calls in `run`; return the result of `run`.

    `norms` are in evaluation mode, with several values per channel; unused ones stay.
    """
    calls: dict[nn.Module, int] = {}

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[module] = count = calls.get(module, 0) + 1
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        module.running_mean.lerp_(inputs[0].mean(dim=axes), 1 / count)
        module.running_var.lerp_(inputs[0].var(dim=axes) + 1e-3, 1 / count)

    with contextlib.ExitStack() as stack:
        for module in norms:
            stack.enter_context(module.register_forward_pre_hook(hook))
        return run()


class Target(NamedTuple):
    mean: float
    deviation: float


def outputs_of(layer: nn.Module, run: Callable[[], Any]) -> torch.Tensor:
    """Return the outputs of a layer during a run, (channels, all positions of all calls)."""
    return torch.cat(*outputs_of_all([layer], run), 1)


def outputs_of_all(layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[list[torch.Tensor]]:
    """Return each layer's outputs per call of one run, (channels, all positions)."""
    outputs: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}

    def hook(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        outputs[layer].append(output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1))

    with contextlib.ExitStack() as stack:
        for layer in outputs:
            stack.enter_context(layer.register_forward_hook(hook))
        run()
    return [outputs[layer] for layer in layers]


Numbers = float | torch.Tensor
"""One number, or (C,) numbers."""


def rescale(layer: nn.Module, outputs: torch.Tensor, mean: Numbers, deviation: Numbers) -> None:
    """Change weight and bias in place so that every channel gets this mean and deviation.

    - `layer`: convolution or linear layer with a bias; a transposed one has a group per channel.
    - `outputs`: (C, n), see `outputs_of`.
    """
    centre = outputs.mean(1)
    spread = (outputs - centre[:, None]).square().mean(1).sqrt()
    # a tensor: with a float PyTorch would multiply by the reciprocal
    gain = torch.as_tensor(deviation) / spread.clamp(min=MIN_SPREAD * float(spread.mean()))
    if hasattr(layer, 'tempearture'):  # mmdet's spelling, of layers that norm their weight
        gain = torch.ones_like(gain)
    # rows of a transposed convolution are its inputs, several per channel if each channel has a group
    rows = gain.repeat_interleave(len(layer.weight) // len(gain))
    layer.weight.mul_(rows.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_(mean - gain * (centre - layer.bias))


def targets_of(targets: Sequence[Target]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and deviations (C,) float32 of C targets."""
    mean, deviation = torch.tensor(targets).unbind(1)
    return mean, deviation
