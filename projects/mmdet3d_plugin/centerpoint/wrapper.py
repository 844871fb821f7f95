"""The dense remainder of CenterPoint as a module of flat tensors.

Glossary: C channels, H, W bird's-eye view, K classes of a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mmdeploy_ext.runtime.centerpoint.boxes import VALUES

if TYPE_CHECKING:
    import torch


class DenseHead(nn.Module):
    """SECOND, its FPN and the heads of all tasks, up to raw outputs."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the parts of a `CenterPoint`."""
        super().__init__()
        self.pts_backbone = model.pts_backbone
        self.pts_neck = model.pts_neck if model.with_pts_neck else None
        self.pts_bbox_head = model.pts_bbox_head

    def forward(self, bev: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return `reg`, `height`, `dim`, `rot`, `vel` (if there is one) and `heatmap` of every task in turn.

        Args:
            bev: (1, C, H, W) float32 of the sparse encoder.
        """
        features = self.pts_backbone(bev)
        if self.pts_neck is not None:
            features = self.pts_neck(features)
        return flat_outputs(self.pts_bbox_head(features))


def flat_outputs(task_outputs: tuple[list[dict[str, torch.Tensor]], ...]) -> tuple[torch.Tensor, ...]:
    """Return what `CenterHead.forward` gives as one tuple, in the order of `BoxRule.output_names`."""
    names = (*VALUES, 'heatmap')
    return tuple(level[name] for (level,) in task_outputs for name in names if name in level)
