"""Pictures to feature maps in the graphs of detectors of cameras, on the layers of the live model.

Glossary: N cameras, C channels, h, w feature map, H, W network input in pixels.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.results import widened
from mmdeploy_ext.spec.tensors import Graph, GraphSpec

# ---- seeded inputs to trace graphs of frames


def with_examples(model: nn.Module, parts: Sequence[tuple[str, nn.Module, GraphSpec]]) -> list[Graph]:
    """Return graphs of (name, module, contract) with examples to trace, on the model's device.

    Examples are random floats in 0..1, near the identity for (4, 4) matrices, and 0 for integers.
    """
    device = next(model.parameters()).device
    return [
        Graph(name, module.eval().to(device), contract, _example(contract, device))
        for name, module, contract in parts
    ]


def _example(contract: GraphSpec, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    example = {}
    for tensor in contract.inputs:
        if tensor.dtype.startswith('int'):  # sizes of nothing: none is out of range
            axes = [1 if isinstance(axis, str) else axis for axis in tensor.axes]
            example[tensor.name] = torch.zeros(axes, dtype=getattr(torch, tensor.dtype), device=device)
            continue
        values = torch.rand(tensor.axes, generator=generator)
        if len(tensor.axes) > 2 and tensor.axes[-2:] == (4, 4):
            values = torch.eye(4) + 0.01 * values
        dtype = torch.float64 if tensor.dtype == 'float64' else torch.float32
        example[tensor.name] = values.to(device, dtype)
    return example


# ---- graphs


def camera_graphs(
    model: nn.Module, options: Options, parts: Sequence[tuple[str, nn.Module, GraphSpec]]
) -> list[Graph]:
    """Return graphs of (name, module, contract); outputs get the tolerances of the precision."""
    widened_parts = []
    for name, module, spec in parts:
        outputs = (
            dataclasses.replace(tensor, groups=widened(tensor.groups, options.precision))
            for tensor in spec.outputs
        )
        widened_parts.append((name, module, dataclasses.replace(spec, outputs=tuple(outputs))))
    return with_examples(model, widened_parts)


def feature_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the feature maps (N, C, h, w) of each level."""
    maps = model.img_backbone(images)
    maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
    neck = getattr(model, 'img_neck', None)
    return maps if neck is None else list(neck(maps))


def map_shapes(model: nn.Module, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Return (C, h, w) of each level, by running the network once."""
    with torch.no_grad():
        picture = next(model.parameters()).new_zeros((1, 3, height, width))
        return tuple(tuple(level.shape[1:]) for level in feature_maps(model, picture))
