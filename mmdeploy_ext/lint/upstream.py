"""A detector of mmdet as a module of one tensor: what its own test code does with a picture."""

from __future__ import annotations

from typing import Any

import torch


class Upstream(torch.nn.Module):
    """Calls `simple_test` of a detector, with the metadata of a picture that was not resized."""

    def __init__(self, detector: torch.nn.Module) -> None:
        """Keep the detector."""
        super().__init__()
        self.detector = detector

    def forward(self, img: torch.Tensor) -> Any:
        """Return what the detector returns for pictures (B, 3, H, W)."""
        batch, _, height, width = (int(size) for size in img.detach().numpy().shape)
        shape = (height, width, 3)
        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=1.0, flip=False)
        return self.detector.simple_test(img, [meta] * batch)
