"""Anchors that a Cascade RPN refines, stage by stage: mmdet 2.28.2's `dense_heads/cascade_rpn_head.py`.

Glossary: B batch, A anchors of a level, one per cell.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import clip_to
from mmdeploy_ext.families.parts.dense_heads import border_inset, chosen_coder, clips
from mmdeploy_ext.families.parts.priors import rows_of
from mmdeploy_ext.families.parts.runtime.box_coders import CODERS

METHODS = ('forward', 'forward_single', 'anchor_offset', 'refine_bboxes', 'get_bboxes', '_get_bboxes_single')
"""Methods of stages that the graphs compute by themselves."""


def check_stages(head: nn.Module) -> None:
    """Refuse (ConfigError) stages that the graph does not repeat."""
    for stage in head.stages:
        if any(count != 1 for count in stage.prior_generator.num_base_priors):
            raise ConfigError('model.rpn_head.stages: Cascade RPN has one anchor per cell')
    if not head.stages[-1].with_cls:
        raise ConfigError('model.rpn_head.stages[-1].with_cls=False: the last stage gives the scores')


def outputs_of(
    head: nn.Module, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor, priors: Any
) -> tuple[Sequence[torch.Tensor], ...]:
    """Return class logits (B, 1, h, w), deltas (B, 4, h, w) and anchors (B, A, 4) of the last stage.

    `priors` makes the anchors of the first stage; refined ones are clipped to `clip_hw` (B, 2) height, width.
    """
    batch = maps[0].shape[0]
    anchors = [
        priors.single_level_grid_priors(one.shape[-2:], level, dtype=one.dtype, device=one.device)[None]
        for level, one in enumerate(maps)
    ]
    anchors = [one.expand(batch, -1, -1) for one in anchors]
    for index, stage in enumerate(head.stages):
        offsets = None
        if stage.adapt_cfg['type'] == 'offset':
            pairs = zip(anchors, maps, stage.anchor_strides, strict=True)
            offsets = [offsets_of(one, level, stride) for one, level, stride in pairs]
        maps, logits, deltas = stage(maps, offsets)
        if index + 1 < len(head.stages):
            pairs = zip(anchors, deltas, strict=True)
            anchors = [_refined(stage, one, level, clip_hw) for one, level in pairs]
    return logits, deltas, anchors


def _refined(
    stage: nn.Module, anchors: torch.Tensor, deltas: torch.Tensor, clip_hw: torch.Tensor
) -> torch.Tensor:
    settings = chosen_coder(stage, 'model.rpn_head.stages')
    boxes = CODERS[settings['type']](torch, anchors, dict(bbox_pred=rows_of(deltas, 4)), settings, 0)
    return clip_to(boxes, clip_hw, border_inset(stage)) if clips(stage) else boxes


def offsets_of(anchors: torch.Tensor, level: torch.Tensor, stride: float) -> torch.Tensor:
    """Return where a kernel of 3 x 3 samples the regions of anchors: (B, A, 18), y before x, in cells.

    `anchors` (B, A, 4) are xyxy and `stride` is in pixels; A is h * w of `level` (B, C, h, w).
    """
    place = (anchors[..., :2] + anchors[..., 2:]) * 0.5 / stride
    rows, columns = (torch.arange(side, device=anchors.device).to(anchors) for side in level.shape[-2:])
    cells = torch.stack(torch.meshgrid(columns, rows, indexing='xy'), dim=-1).reshape(-1, 2)
    size = (anchors[..., 2:] - anchors[..., :2]) / stride / 2 - 1
    taps = anchors.new_tensor([[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)])
    found = size[:, :, None] * taps + (place - cells)[:, :, None]
    return found.flip(-1).flatten(2)
