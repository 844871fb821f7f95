"""The networks of monocular detectors with flat tensors: backbone, neck, and layers of the head.

Source: mmdet3d 1.0.0rc6, models/dense_heads/{anchor_free_mono3d,fcos_mono3d,pgd,smoke_mono3d}_head.py.
Glossary: B batch, C classes, L levels, H, W network input in pixels, h, w size of a level's maps.
"""

from collections.abc import Sequence

import torch
from mmdet3d.models.dense_heads.anchor_free_mono3d_head import AnchorFreeMono3DHead
from torch import nn
from torch.nn import functional

from mmdeploy_ext.base.taps import tap

CORNERS = 16
SIDES = 4
"""Columns of the distances to the sides of the 2D box, the last ones of `bbox_pred`."""
CLIPPED = 1e-4
"""Distance of SMOKE's scores from 0 and 1."""
SMOKE_NAMES = ('heat', 'bbox_pred')


def output_names(head: nn.Module) -> tuple[str, ...]:
    names = ['cls_score', 'bbox_pred']
    if head.use_direction_classifier:
        names.append('dir_cls_pred')
    if getattr(head, 'use_depth_classifier', False):
        names.append('depth_cls_pred')
        if head.weight_dim != -1:
            names.append('weight')
    if head.pred_attrs:
        names.append('attr_pred')
    return (*names, 'centerness')


def raw_names(head: nn.Module) -> tuple[str, ...]:
    return tuple(f'{name}_{level}' for name in output_names(head) for level in range(len(head.strides)))


def through(layers: Sequence[nn.Module], maps: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        maps = layer(maps)
    return maps


def level_outputs(head: nn.Module, maps: torch.Tensor, level: int) -> dict[str, torch.Tensor]:
    """Return output name -> map (B, columns, h, w) of a level of FCOS3D or PGD."""
    scores, boxes, directions, attributes, class_maps, box_maps = AnchorFreeMono3DHead.forward_single(
        head, maps
    )
    outputs = dict(cls_score=scores, bbox_pred=decoded_maps(head, boxes, scores, level))
    outputs |= dict(dir_cls_pred=directions, attr_pred=attributes)
    branch = box_maps if head.centerness_on_reg else class_maps
    outputs['centerness'] = head.conv_centerness(through(head.conv_centerness_prev, branch))
    names = output_names(head)
    if 'depth_cls_pred' in names:
        outputs['depth_cls_pred'] = head.conv_depth_cls(through(head.conv_depth_cls_prev, box_maps))
    if 'weight' in names:
        weights = [
            last(through(layers or (), box_maps))
            for layers, last in zip(head.conv_weight_prevs, head.conv_weights, strict=True)
        ]
        outputs['weight'] = torch.cat(weights, 1)
    return {name: outputs[name] for name in names}


def decoded_maps(head: nn.Module, boxes: torch.Tensor, scores: torch.Tensor, level: int) -> torch.Tensor:
    """Return `bbox_pred` (B, columns, h, w) of a level as the head outputs it in a test.

    Columns: cell's middle minus centre, pixels, depth and sizes (length, height, width), metres, yaw along
    the ray, radians; then velocity, PGD's key points and distances to the sides, pixels. `boxes` are (B,
    columns, h, w), `scores` (B, C, h, w) logits.
    """
    coder, scales, stride = head.bbox_coder, head.scales[level], head.strides[level]
    offsets, depths = scales[0](boxes[:, :2]) * stride, scales[1](boxes[:, 2:3])
    sizes, rest = scales[2](boxes[:, 3:6]).exp(), boxes[:, 6:]
    best = scores.max(dim=1)[1]
    if coder.base_depths is None:
        depths = depths.exp()
    else:
        priors = boxes.new_tensor(coder.base_depths)
        mean, spread = [
            priors[0, column] if len(priors) == 1 else priors[:, column][best][:, None] for column in (0, 1)
        ]
        depths = mean + depths * spread
    if coder.base_dims is not None:
        sizes = sizes * boxes.new_tensor(coder.base_dims)[best].permute(0, 3, 1, 2)
    parts = [offsets, depths, sizes]
    if getattr(head, 'pred_keypoints', False):
        begin = coder.bbox_code_size - 6
        corners = torch.tanh(scales[3](rest[:, begin : begin + CORNERS]))
        farthest = stride * head.regress_ranges[0][1] / head.strides[0]
        parts += [rest[:, :begin], corners * farthest]
        rest = rest[:, begin + CORNERS :]
    if head.pred_bbox2d:
        parts.append(rest[:, :-SIDES])
        rest = functional.relu(scales[-1](rest[:, -SIDES:])) * stride
    return torch.cat([*parts, rest], 1)


class PointsNetwork(nn.Module):
    """Backbone, neck and head of FCOS3D or PGD; parameters keep their names below `model.`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps named by `raw_names` of normalised images (B, 3, H, W)."""
        head = self.model.bbox_head
        levels = [
            level_outputs(head, maps, level) for level, maps in enumerate(self.model.extract_feat(image))
        ]
        return tuple(
            tap(f'{name}_{level}', outputs[name])
            for name in output_names(head)
            for level, outputs in enumerate(levels)
        )


class PeaksNetwork(nn.Module):
    """Backbone, neck and head of SMOKE."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (B, C, h, w) and values of boxes (B, 8, h, w)."""
        head = self.model.bbox_head
        (maps,) = self.model.extract_feat(image)
        scores, values, *_ = AnchorFreeMono3DHead.forward_single(head, maps)
        heat = scores.sigmoid().clamp(min=CLIPPED, max=1 - CLIPPED)
        parts = [values[:, :3], values[:, 3:6].sigmoid() - 0.5, functional.normalize(values[:, 6:])]
        return tap('heat', heat), tap('bbox_pred', torch.cat(parts, 1))
