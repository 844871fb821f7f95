"""Proposals of mmrotate's heads: upright boxes, or rotated ones that suppress each other by their bounds.

Source: mmrotate 0.3.4 `models/dense_heads/{rotated_rpn_head,oriented_rpn_head}.py`.

What methods without a docstring are for is documented in `mmdeploy_ext/families/parts/proposals.py`.

Glossary: B batch, K boxes of an image.
"""

import dataclasses
from typing import Any

import torch
from torch import nn

from mm2onnx_mmrotate.polygons import bounds_of_box
from mm2onnx_mmrotate.two_stage.coders import midpoint_offset
from mm2onnx_mmrotate.two_stage.heads import is_oriented, midpoint_settings
from mmdeploy_ext.families.parts.dense_heads import plain_head
from mmdeploy_ext.families.parts.proposals import Proposals


def oriented_facts(head: nn.Module) -> dict[str, Any]:
    """Return what `facts_of` of `families/parts/proposals.py` does; `head` has a `MidpointOffsetCoder`."""
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_pred', 6))
    description = dataclasses.replace(plain_head(head), outputs=outputs)
    return dict(coder=midpoint_settings(head.bbox_coder), head=description, clip=False)


class OrientedProposals(Proposals):
    """Proposals of an `OrientedRPNHead`: boxes (B, K, 5), not clipped."""

    facts_of_head = staticmethod(oriented_facts)

    def decode(self, rows: dict[str, torch.Tensor], priors: torch.Tensor, level: int) -> torch.Tensor:
        return midpoint_offset(torch, priors, rows['bbox_pred'], self.facts['coder'])

    def sides(self, boxes: torch.Tensor) -> torch.Tensor:
        return boxes[..., 2:4]

    def bounds(self, boxes: torch.Tensor) -> torch.Tensor:
        return bounds_of_box(torch, boxes, self.facts['coder'].version)


def proposals_of(head: nn.Module) -> Proposals:
    """Return the module that makes proposals of the outputs of a head."""
    return (OrientedProposals if is_oriented(head) else Proposals)(head)
