"""Mask heads in the order in which mmdet 2.28.2 runs them: what they see of regions, and their logits.

Source: `roi_heads/{standard,cascade,htc,scnet,mask_scoring}_roi_head.py`. Glossary: see `regions.py`; m
side of a mask.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.regions import Branch, Regions, stages_of

NormedConv2d = mmdet_module('mmdet.models.utils').NormedConv2d

Seen = 'tuple[torch.Tensor, list[torch.Tensor]]'
"""Features of regions (R, ...), and logits (R, C or 1, m, m) of every stage."""


def heads_of(roi_head: nn.Module) -> list[nn.Module]:
    """Return the mask heads, one per stage; of some cascades there is one in all."""
    head = roi_head.mask_head
    return list(head) if isinstance(head, nn.ModuleList) else [head]


def check_flow(roi_head: nn.Module) -> None:
    """Refuse (ConfigError) `mask_info_flow` that is off, by which mmdet's own `simple_test` does not run."""
    if not getattr(roi_head, 'mask_info_flow', True):
        raise ConfigError('model.roi_head.mask_info_flow=False: masks export with True')


class Stages(nn.Module):
    """Mask heads that look at regions of their own."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__()
        stages = range(len(heads_of(roi_head)))
        self.branches = nn.ModuleList(Branch(roi_head, 'mask', stage, constant) for stage in stages)

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> Seen:
        """Return the features of the last stage, and the logits of every stage.

        Of `region_maps.feature_names` and boxes (B, n, 4), pixels of the network input.
        """
        seen = [branch.features(maps, boxes) for branch in self.branches]
        return seen[-1], [branch.head(one) for branch, one in zip(self.branches, seen, strict=True)]


class Flow(Regions):
    """Mask heads of HTC: all look at the regions of the last one, and each at what the one before it saw."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__(roi_head, 'mask', len(heads_of(roi_head)) - 1, constant)
        self.heads = roi_head.mask_head

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> Seen:
        """Return the regions that the last head looks at, and the logits of every head."""
        features, before, found = self.features(maps, boxes), None, []
        for head in self.heads:
            logits, before = head(features, before)
            found.append(logits)
        return features, found


class Relayed(Regions):
    """The mask head of SCNet, which also looks at what the box head of the last stage sees in a region."""

    def __init__(self, roi_head: nn.Module, constant: bool = False) -> None:
        super().__init__(roi_head, 'mask', 0, constant)
        self.head, self.relay = roi_head.mask_head, roi_head.feat_relay_head
        self.box = Branch(roi_head, 'bbox', stages_of(roi_head) - 1, constant)

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> Seen:
        """Return what the head looks at in each region, and its logits."""
        shared = self.box.head(self.box.features(maps, boxes), return_shared_feat=True)[-1]
        features = self.features(maps, boxes) + self.relay(shared)
        return features, [self.head(features)]


def logits_of(roi_head: nn.Module, constant: bool = False) -> nn.Module:
    """Return the module that gives the logits of all mask heads, as `Stages` does; see `Regions`."""
    if hasattr(roi_head, 'mask_info_flow'):
        return Flow(roi_head, constant)
    kind = Relayed if getattr(roi_head, 'with_feat_relay', False) else Stages
    return kind(roi_head, constant)


class OwnClass(nn.Module):
    """The last convolution of a mask head, 1 x 1, for one class of each region.

    mmdet computes all classes, of which one is used: of LVIS 1203, each of as many numbers.
    """

    def __init__(self, layer: nn.Conv2d, labels: torch.Tensor) -> None:
        """Keep the layer, and the class of each region (R,), 0 or more."""
        super().__init__()
        self.layer, self.labels = layer, labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (R, 1, m, m) of features (R, C, m, m)."""
        weight = self.layer.weight.flatten(1)
        if isinstance(self.layer, NormedConv2d):  # one of 1 x 1 is normed over the same axis in both ways
            power, least = self.layer.power, self.layer.eps
            weight = weight / (weight.norm(dim=1, keepdim=True).pow(power) + least)
            x = x / (x.norm(dim=1, keepdim=True).pow(power) + least) * self.layer.tempearture
        found = torch.bmm(weight[self.labels][:, None], x.flatten(2))
        if self.layer.bias is not None:
            found = found + self.layer.bias[self.labels][:, None, None]
        return found.reshape(-1, 1, *x.shape[2:])


@contextlib.contextmanager
def own_class(heads: Iterable[nn.Module], labels: torch.Tensor) -> Iterator[None]:
    """Inside the block the last layers of mask heads give the class of each region (R,), 0 or more."""
    layers = [(head, head.conv_logits) for head in heads]
    try:
        for head, layer in layers:
            head.conv_logits = OwnClass(layer, labels)
        yield
    finally:
        for head, layer in layers:
            head.conv_logits = layer


def judge_of(roi_head: nn.Module) -> nn.Module | None:
    """Return the head that tells how well masks fit (Mask Scoring R-CNN), or None."""
    return getattr(roi_head, 'mask_iou_head', None)


def own_rows(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return values (R, 1, ...) of each region's own class, of (R, C, ...); labels (R,), -1 is any."""
    rows = labels.clamp(min=0).reshape(-1, *[1] * (values.dim() - 1))
    return values.gather(1, rows.expand(-1, -1, *values.shape[2:]))
