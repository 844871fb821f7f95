"""Seeded inputs to trace graphs of frames."""

from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.spec.tensors import Graph, GraphSpec


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
