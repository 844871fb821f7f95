"""The chain of modules that an RT-DETR graph is made of: the network, and for `full` the post-processing.

Glossary: B batch, C classes, Q queries, H, W network input in pixels.
"""

from __future__ import annotations

import torch
from torch import nn


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
