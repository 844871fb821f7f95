"""Mask heads of regions in mmdet's order, and their settings.

Source: mmdet 2.28.2 `roi_heads/{standard,cascade,htc,scnet,mask_scoring}_roi_head.py`.
Glossary: B batch, n boxes of an image, R = B * n regions, C classes, m side of a mask in cells, h side of a
mask head's logits (m; smaller in PointRend), H, W size of a map.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.roi_heads import mask_heads
from torch import nn

from mmdeploy_ext.base.config import cfg_options
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.families.common.regions import RegionBranch, Regions, part_of, stages_of
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

NormedConv2d = mmdet_module('mmdet.models.utils').NormedConv2d

FeaturesAndLogits = tuple[torch.Tensor, list[torch.Tensor]]
"""Features of regions (R, ...), and logits (R, C or 1, h, h) of every mask head."""


def heads_of(roi_head: nn.Module) -> list[nn.Module]:
    head = roi_head.mask_head
    return list(head) if isinstance(head, nn.ModuleList) else [head]


def points_of(roi_head: nn.Module) -> nn.Module | None:
    return getattr(roi_head, 'point_head', None)


def judge_of(roi_head: nn.Module) -> nn.Module | None:
    return getattr(roi_head, 'mask_iou_head', None)


def check_flow(roi_head: nn.Module) -> None:
    """Refuse `mask_info_flow` that is off: mmdet's own `simple_test` fails."""
    if not getattr(roi_head, 'mask_info_flow', True):
        raise ConfigError('model.roi_head.mask_info_flow=False is not supported; expected True')


def threshold(test_cfg: Mapping[str, Any], key: str = 'rcnn') -> float:
    """Return `mask_thr_binary` of `test_cfg` (inclusive; below 0, masks are of 0..255)."""
    value = number(f'{key}.mask_thr_binary', test_cfg.get('mask_thr_binary'), float)
    if value < 0 and key == 'panoptic':
        words = cfg_options({f'model.test_cfg.{key}.mask_thr_binary': 0.5})
        raise ConfigError(
            f'model.test_cfg.{key}.mask_thr_binary={value:g}: then masks are of 0..255, of which a map of '
            f'segments takes every pixel above 0; expected 0 to 1: {words}'
        )
    return value


def side_of(roi_head: nn.Module) -> int:
    head = part_of(roi_head, 'mask_head', 0)
    if points_of(roi_head):
        config = roi_head.test_cfg
        return int(head.output_size[0] * config.scale_factor**config.subdivision_steps)
    if isinstance(head, mask_heads.CoarseMaskHead):
        return int(head.output_size[0])
    pooled = part_of(roi_head, 'mask_roi_extractor', 0).roi_layers[0].output_size[0]
    shared = 2 if roi_head.with_shared_head else 1
    return pooled // shared * (int(head.scale_factor) if head.upsample is not None else 1)


class StagedMaskHeads(nn.Module):
    """Mask heads that each take the features of their own regions."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__()
        stages = range(len(heads_of(roi_head)))
        self.branches = nn.ModuleList(RegionBranch(roi_head, 'mask', stage, constant) for stage in stages)

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> FeaturesAndLogits:
        """Return the features of the last stage, and the logits of every stage.

        `maps` are `regions.region_maps`, levels (B, channels, H, W) first; boxes (B, n, 4) are xyxy in pixels
        of the network input.
        """
        features = [branch.features(maps, boxes) for branch in self.branches]
        pairs = zip(self.branches, features, strict=True)
        return features[-1], [branch.head(branch_features) for branch, branch_features in pairs]


class ChainedMaskHeads(Regions):
    """Mask heads of HTC: regions of the last stage, and the features of the head before."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__(roi_head, 'mask', len(heads_of(roi_head)) - 1, constant)
        self.heads = roi_head.mask_head

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> FeaturesAndLogits:
        features, passed_on, stage_logits = self.features(maps, boxes), None, []
        for head in self.heads:
            logits, passed_on = head(features, passed_on)
            stage_logits.append(logits)
        return features, stage_logits


class RelayedMaskHead(Regions):
    """The mask head of SCNet, with features of the last box head."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__(roi_head, 'mask', 0, constant)
        self.head, self.relay = roi_head.mask_head, roi_head.feat_relay_head
        self.box = RegionBranch(roi_head, 'bbox', stages_of(roi_head) - 1, constant)

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> FeaturesAndLogits:
        shared = self.box.head(self.box.features(maps, boxes), return_shared_feat=True)[-1]
        features = self.features(maps, boxes) + self.relay(shared)
        return features, [self.head(features)]


def mask_logits_module(roi_head: nn.Module, constant: bool = False) -> nn.Module:
    if hasattr(roi_head, 'mask_info_flow'):
        return ChainedMaskHeads(roi_head, constant)
    if getattr(roi_head, 'with_feat_relay', False):
        return RelayedMaskHead(roi_head, constant)
    return StagedMaskHeads(roi_head, constant)


class PredictedClass(nn.Module):
    """The last convolution of a mask head, 1 x 1, for each region's predicted class."""

    def __init__(self, layer: nn.Conv2d, labels: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.labels = layer, labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (R, 1, m, m) of features (R, channels, m, m)."""
        weight = self.layer.weight.flatten(1)
        if isinstance(self.layer, NormedConv2d):  # one of 1 x 1 is normed over the same axis in both ways
            power, eps = self.layer.power, self.layer.eps
            weight = weight / (weight.norm(dim=1, keepdim=True).pow(power) + eps)
            x = x / (x.norm(dim=1, keepdim=True).pow(power) + eps) * self.layer.tempearture
        logits = torch.bmm(weight[self.labels][:, None], x.flatten(2))
        if self.layer.bias is not None:
            logits = logits + self.layer.bias[self.labels][:, None, None]
        return logits.reshape(-1, 1, *x.shape[2:])


@contextlib.contextmanager
def predicted_class_only(heads: Iterable[nn.Module], labels: torch.Tensor) -> Iterator[None]:
    """Inside the block mask heads compute the logits (R, 1, m, m) of `labels` (R,), 0 or more.

    The heads need a `conv_logits` of all classes.
    """
    layers = [(head, head.conv_logits) for head in heads]
    try:
        for head, layer in layers:
            head.conv_logits = PredictedClass(layer, labels)
        yield
    finally:
        for head, layer in layers:
            head.conv_logits = layer


def rows_of_class(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return values (R, 1, ...) of each region's class, of (R, C, ...); label -1 takes class 0."""
    rows = labels.clamp(min=0).reshape(-1, *[1] * (values.dim() - 1))
    return values.gather(1, rows.expand(-1, -1, *values.shape[2:]))
