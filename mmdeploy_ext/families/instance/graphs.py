"""The graph of RTMDet-Ins, CondInst and BoxInst: boxes, suppression, masks of the boxes that stay.

Glossary: B batch, n results, P channels of the mask features, H, W network input in pixels, h, w size of
a map.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.mask_resize import interpolation, resizing
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    Suppression,
    clip_to,
    gather_rows,
    limit,
    nms_config,
    number,
    positive,
    rows_of,
)
from mmdeploy_ext.families.common.image_graphs import (
    box_outputs,
    clip_size,
    image_input,
    mask_inputs,
    optional_inputs,
)
from mmdeploy_ext.families.instance.facts import InstanceFacts
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.models.instance_masks import ROUNDED, CondInst, InstanceMaskDetector, mask_logits
from mmdeploy_ext.upstream.operators.operator import hw

FULL_NAMES = ('dets', 'labels', 'masks')
OUTPUTS = ('cls_score', 'bbox_pred', 'centerness', 'parameters')
MULTIPLE = 32
"""Divisor of the input's sides, by which the maps of all levels fit the finest."""


def facts_of(test_cfg: Mapping[str, Any], threshold: str, num_classes: int) -> InstanceFacts:
    nms = nms_config(test_cfg)
    return InstanceFacts(
        score_thr=nms.score_thr,
        iou_thr=nms.iou_threshold,
        mask_thr=number(threshold, test_cfg.get(threshold), float),
        min_size=number('min_bbox_size', test_cfg.get('min_bbox_size', -1), float),
        nms_pre=nms.nms_pre,
        max_per_img=positive('max_per_img', nms.max_per_img),
        num_classes=num_classes,
    )


def model_facts(model: InstanceMaskDetector) -> InstanceFacts:
    return facts_of(model.test_cfg, model.threshold, int(model.bbox_head.num_classes))


class InstanceNetwork(nn.Module):
    """Backbone, neck and heads with flat tensors."""

    def __init__(self, model: InstanceMaskDetector) -> None:
        super().__init__()
        self.model, self.levels = model, len(model.bbox_head.prior_generator.strides)
        outputs = OUTPUTS if isinstance(model, CondInst) else (*OUTPUTS[:2], OUTPUTS[3])
        self.names = ('features', *(f'{name}_{level}' for name in outputs for level in range(self.levels)))

    def flat(self, outputs: list[list[torch.Tensor]], features: torch.Tensor) -> list[torch.Tensor]:
        return [features, *(level for levels in outputs for level in levels)]

    def grouped(self, maps: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Return the maps of each output without the features."""
        return [maps[first : first + self.levels] for first in range(0, len(maps), self.levels)]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return features (B, P, h, w) and the maps of the heads (B, columns, h, w), by output."""
        tensors = self.flat(*self.model.maps(image))
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, tensors, strict=True))


class InstanceFullForm(nn.Module):
    """The form `full`."""

    def __init__(self, model: InstanceMaskDetector) -> None:
        super().__init__()
        self.facts, self.head, self.grouped = (
            model_facts(model),
            model.bbox_head,
            InstanceNetwork(model).grouped,
        )
        self.scales_first, self.layers, self.cells = model.scales_first, model.layers_of_masks(), model.cells
        self.masks = _condinst_masks(model) if isinstance(model, CondInst) else _rtmdet_masks(model)
        self.suppress = Suppression(self.facts.iou_thr, self.facts.max_per_img)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        ori_shape: torch.Tensor,
        features: torch.Tensor,
        *maps: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5), labels (B, n) and masks (B, n, height, width) bool; padding has label -1.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original.
            ori_shape: (2,) int64 h, w of the results; 0 means the input size.
            features: (B, P, h, w).
            maps: the heads' outputs in turn, each of every level.
        """
        clip_hw, scale = clip_size(image, img_shape), scale_factor[:, None]
        levels = [self._level(*level, clip_hw) for level in enumerate(zip(*self.grouped(maps), strict=True))]
        boxes, values, scores, labels, rest = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        boxes = boxes / scale if self.scales_first else boxes
        candidates = values > self.facts.score_thr
        if self.facts.min_size >= 0:
            candidates = candidates & ((boxes[..., 2:] - boxes[..., :2]) > self.facts.min_size).all(2)
        scores = torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE))
        results = torch.cat([boxes if self.scales_first else boxes / scale, rest], 2)
        rows, labels = self.suppress(boxes, scores, labels, candidates, results)
        points = torch.cat([rows[..., -4:-2], rows[..., -2:-1].clamp(min=1)], 2)  # padding has stride 0
        logits = mask_logits(features, rows[..., 4:-4], points, self.cells(features), **self.layers)
        target = torch.where(ori_shape > 0, ori_shape, hw(image).to(ori_shape))
        masks = self.masks(logits, clip_hw, target, hw(image) / scale_factor[:, :2])
        masks = masks & (labels >= 0)[..., None, None]
        outputs = torch.cat([rows[..., :4], rows[..., -1:]], 2), labels, masks
        return tuple(tap(name, tensor) for name, tensor in zip(FULL_NAMES, outputs, strict=True))

    def _level(
        self, level: int, maps: tuple[torch.Tensor, ...], clip_hw: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return boxes, class scores, scores, labels, and parameters with the cell, of the best pairs."""
        priors = self.head.prior_generator
        size, classes = maps[0].shape[2:], self.facts.num_classes
        points = priors.single_level_grid_priors(size, level, device=maps[0].device)
        logits, sides, *centres, parameters = (rows_of(of_level, of_level.shape[1]) for of_level in maps)
        flat = logits.sigmoid().flatten(1)
        values, pairs = flat.topk(limit(self.facts.nms_pre, flat.shape[1]), 1)
        cells = torch.div(pairs, classes, rounding_mode='floor')
        points, sides = points[cells], gather_rows(sides, cells)
        boxes = clip_to(torch.cat([points - sides[..., :2], points + sides[..., 2:]], 2), clip_hw)
        scores = values * gather_rows(centres[0], cells)[..., 0].sigmoid() if centres else values
        stride = torch.full_like(points[..., :1], priors.strides[level][0])
        rest = torch.cat([gather_rows(parameters, cells), points, stride], 2)
        return boxes, values, scores, pairs - cells * classes, rest


def _rtmdet_masks(model: InstanceMaskDetector) -> Any:
    """Logits are enlarged to the input, resized to the size of `mask_size` and cropped to the original."""
    stride, threshold = model.bbox_head.prior_generator.strides[0][0], model_facts(model).mask_thr

    def masks(
        logits: torch.Tensor, _: torch.Tensor, target: torch.Tensor, sizes: torch.Tensor
    ) -> torch.Tensor:
        size, lengths, weights, inside = hw(logits), torch.ceil(sizes - ROUNDED), [], []
        for axis in (0, 1):
            wide, length = size[axis] * stride, lengths[:, axis, None, None]
            lines = torch.arange(target[axis], dtype=length.dtype, device=length.device)[:, None]
            weights.append(_weights((lines + 0.5) * (wide / length) - 0.5, wide) @ resizing(size[axis], wide))
            inside.append(lines < length)
        soft = (weights[0][:, None] @ logits @ weights[1][:, None].transpose(2, 3)).sigmoid()
        return (soft > threshold) & (inside[0] & inside[1].transpose(1, 2))[:, None]

    return masks


def _condinst_masks(model: InstanceMaskDetector) -> Any:
    """Probabilities are enlarged to the input, cropped to the image and resized to the original."""
    head, threshold = model.mask_head, model_facts(model).mask_thr

    def masks(
        logits: torch.Tensor, clip_hw: torch.Tensor, target: torch.Tensor, _: torch.Tensor
    ) -> torch.Tensor:
        size = hw(logits)
        rows, columns = (_aligned(size[axis], head.ratio) for axis in (0, 1))
        soft = (rows @ logits @ columns.T).sigmoid()
        weights = []
        for axis in (0, 1):
            crop = clip_hw[:, axis, None, None]
            middle = _aligned(size[axis] * head.ratio, head.mask_out_stride)
            pixels = torch.arange(middle.shape[0], dtype=crop.dtype, device=crop.device)
            lines = torch.arange(target[axis], dtype=crop.dtype, device=crop.device)
            weights.append((interpolation(crop, lines[:, None], pixels) @ middle)[:, None])
        return weights[0] @ soft @ weights[1].transpose(2, 3) > threshold

    return masks


def _aligned(size: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the weights (size * factor, size) of `aligned_bilinear`."""
    lines = torch.arange(size * factor, device=size.device)
    return _weights((lines - factor // 2).clamp(min=0)[:, None] / factor, size)


def _weights(place: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return bilinear weights (..., t, size) of places (..., t, 1) in lines."""
    place = torch.minimum(place.clamp(min=0), (size - 1).to(place.dtype))
    return (1 - (place - torch.arange(size, dtype=place.dtype, device=place.device)).abs()).clamp(min=0)


def spec(model: InstanceMaskDetector, options: Options) -> GraphSpec:
    image = image_input(options, smallest=MULTIPLE, multiple=MULTIPLE)
    batch = image.axes[0]
    meaning = 'masks of the instances at ori_shape'
    masks = TensorSpec('masks', 'bool', (batch, 'n', 'h', 'w'), meaning, compare='detections')
    _, ori_shape = mask_inputs(batch, '0 means the input size')
    inputs = (image, *optional_inputs(batch, clips=True), ori_shape)
    return GraphSpec('instance/full', inputs, (*box_outputs(batch, 'n'), masks))


def stages(model: InstanceMaskDetector, options: Options) -> list[Stage]:
    network = InstanceNetwork(model)
    inputs = ('input', 'img_shape', 'scale_factor', 'ori_shape', *network.names)
    return [
        Stage('network', network, ('input',), network.names),
        Stage('postprocess', InstanceFullForm(model), inputs, FULL_NAMES),
    ]
