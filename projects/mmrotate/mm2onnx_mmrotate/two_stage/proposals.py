"""Proposals of mmrotate's heads: upright boxes, or rotated ones that suppress each other by their bounds.

Source: mmrotate 0.3.4 `models/dense_heads/{rotated_rpn_head,oriented_rpn_head}.py`.

Glossary: B batch, K boxes of an image.
"""

from typing import Any

import torch
from torch import nn

from mm2onnx_mmrotate.polygons import bounds_of_box
from mm2onnx_mmrotate.two_stage.heads import is_oriented, midpoint_settings
from mmdeploy_ext.families.regions import Proposals, facts_of


class OrientedProposals(Proposals):
    """Proposals of an `OrientedRPNHead`: boxes (B, K, 5), not clipped."""

    @staticmethod
    def facts_of_head(head: nn.Module) -> dict[str, Any]:
        return facts_of(head, midpoint_settings(head.bbox_coder))

    def sides(self, boxes: torch.Tensor) -> torch.Tensor:
        return boxes[..., 2:4]

    def bounds(self, boxes: torch.Tensor) -> torch.Tensor:
        return bounds_of_box(torch, boxes, self.facts['coder'].version)


def proposals_of(head: nn.Module) -> Proposals:
    """Return the module that makes proposals of the outputs of a head."""
    return (OrientedProposals if is_oriented(head) else Proposals)(head)
