"""mmcv's corner pooling, the largest value so far along an axis, in standard operators: ONNX has no CumMax.

Every step takes the larger one of a map and of itself, moved twice as far as the step before.
"""

from __future__ import annotations

import torch
from torch import nn

from mmdeploy_ext.exporting.fold import PREPARATIONS

STEPS = 12
"""Maps of up to 2 ** 12 cells a side are right: of 16384 pixels where the stride is 4."""
AXES = dict(bottom=(2, 1), top=(2, -1), right=(3, 1), left=(3, -1))
"""Mode of mmcv -> the axis, and whether the maximum runs along it or against it."""


class CornerMaximum(nn.Module):
    """`mmcv.ops.CornerPool` behind its own name and mode."""

    mode: str

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, C, h, w)."""
        axis, along = AXES[self.mode]
        for step in range(STEPS):
            moved = 2**step
            before, behind = (moved, 0) if along > 0 else (0, moved)
            sides = (before, behind, 0, 0) if axis == 3 else (0, 0, before, behind)
            padded, size = nn.functional.pad(x, sides, value=float('-inf')), x.shape[axis]
            x = torch.maximum(x, padded.narrow(axis, 0 if along > 0 else moved, size))
        return x


def pool_by_steps(module: nn.Module) -> None:
    """Let a `CornerPool` of mmcv pool by steps, in place."""
    if type(module).__name__ == 'CornerPool':
        module.__class__ = CornerMaximum


PREPARATIONS.append(pool_by_steps)
