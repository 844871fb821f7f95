"""The chain of modules that an RT-DETR graph is made of: the network, and for `full` the post-processing.

Glossary: B batch, C classes, Q queries, H, W network input in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmdeploy_ext.exporting.same_bytes import SameBytes
from mmdeploy_ext.runtime.rtdetr.model import STRIDES


class Network(nn.Module):
    """Backbone, encoder and decoder behind flat tensors; its parameters keep their names below `model.`."""

    def __init__(self, model: nn.Module, with_tokens: bool) -> None:
        """Keep the detector.

        Args:
            model: the detector.
            with_tokens: give the selected tokens too, which tell ties in the selection.
        """
        super().__init__()
        self.model = model
        self.with_tokens = with_tokens

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network on (B, 3, H, W) float32 RGB / 255.

        Returns:
            Class logits (B, Q, C), boxes cxcywh (B, Q, 4) relative to the input, tokens (B, Q) int64.
        """
        outputs = self.model.decoder(self.model.extract_feat(images))
        return outputs if self.with_tokens else outputs[:2]


class Constants(nn.Module):
    """Tensors in place of a module that computes them from the size of its input alone."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Keep the tensors as buffers, so that constants of the graph bear the module's name."""
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f'constant{index}', tensor)

    def forward(self, _: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the one tensor, or all of them."""
        tensors = tuple(self.buffers())
        return tensors if len(tensors) > 1 else tensors[0]


def with_fixed_size(model: nn.Module, height: int, width: int) -> None:
    """Let a copy made by `fuse` hold positions and anchors of one size, the same bytes on every machine.

    For files that are simplified: onnxslim would fold their sines and logarithms in a way of each CPU.
    """
    device = next(model.parameters()).device
    maps = [torch.empty(1, 1, height // stride, width // stride) for stride in STRIDES]
    with torch.no_grad(), SameBytes():
        position, anchors = model.encoder.position(maps[-1]), model.decoder.anchors(maps)
    model.encoder.position = Constants(position).to(device)
    model.decoder.anchors = Constants(*anchors).to(device)
