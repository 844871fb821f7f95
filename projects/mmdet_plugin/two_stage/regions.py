"""Features of regions, and the heads that look at them: mmdet's own layers, pooled by ONNX's RoiAlign.

Glossary: B batch, K regions of an image, R = B * K, C classes, L levels, G boxes per region (C, or 1 where
the regression does not know classes).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmdet.models.roi_heads import roi_extractors as extractors
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.ops.roi_align import check_layer, pool_level
from projects.mmdet_plugin.dense.plain import chosen_coder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

EXTRACTORS = (extractors.SingleRoIExtractor, extractors.GenericRoIExtractor)


def same_methods(own: type, upstream: type, methods: Iterable[str]) -> None:
    """Refuse a class with methods of its own where the graphs repeat those of `upstream`.

    Raises:
        ConfigError: names the method.
    """
    for name in methods:
        if getattr(own, name, None) is not getattr(upstream, name, None):
            raise ConfigError(
                f'{own.__name__} has a {name}() of its own, which the graphs do not repeat; expected that of '
                f'{upstream.__name__}'
            )


def coder_settings(head: nn.Module, where: str) -> dict[str, Any]:
    """Return the settings of a head's box coder, as `runtime/dense/coders.py` reads them.

    Raises:
        ConfigError: it is none that is exported, or that of mmdet 1.x, whose borders are a pixel further in.
    """
    settings = chosen_coder(head, where)
    if not hasattr(head.bbox_coder, 'clip_border'):
        raise ConfigError(
            f'{where}.bbox_coder is {type(head.bbox_coder).__name__}; expected DeltaXYWHBBoxCoder'
        )
    return settings


def check_extractor(extractor: nn.Module) -> None:
    """Refuse what the graph does not compute as mmdet does.

    Raises:
        ConfigError: names the class or the setting.
    """
    if type(extractor) not in EXTRACTORS:
        known = ', '.join(one.__name__ for one in EXTRACTORS)
        raise ConfigError(f'{type(extractor).__name__}: no extractor of regions that is exported ({known})')
    for layer in extractor.roi_layers:
        check_layer(layer)


class Pool(nn.Module):
    """An extractor of regions: every region from the level of its size, or from all levels."""

    def __init__(self, extractor: nn.Module, constant: bool = False) -> None:
        """Keep the extractor and the sizes at which its levels begin; `constant`: see `pool_level`."""
        super().__init__()
        self.extractor, self.constant = extractor, constant
        self.begins = [_least(level) for level in range(1, extractor.num_inputs)]

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        boxes: torch.Tensor,
        images: torch.Tensor,
        grown: float | None = None,
    ) -> torch.Tensor:
        """Return features (R, channels, h, w).

        Args:
            maps: of all levels (B, channels, H, W); those behind the extractor's inputs are not looked at.
            boxes: (R, 4) xyxy, pixels of the network input.
            images: (R,) int64 index into the batch.
            grown: what the sides of boxes are multiplied by before pooling; levels are those of the boxes.
        """
        layers = self.extractor.roi_layers
        pairs = list(zip(layers, maps[: len(layers)], strict=True))
        shape = (boxes.shape[0], maps[0].shape[1], *layers[0].output_size)
        pooled = maps[0].new_zeros(shape)
        if isinstance(self.extractor, extractors.GenericRoIExtractor):
            every = torch.zeros_like(images)
            return self._joined(
                [
                    pool_level(pooled, one, boxes, images, every, 0, layer, self.constant)
                    for layer, one in pairs
                ]
            )
        levels = self.levels(boxes)
        boxes = boxes if grown is None else _grown(boxes, grown)
        for level, (layer, one) in enumerate(pairs):
            pooled = pool_level(pooled, one, boxes, images, levels, level, layer, self.constant)
        return pooled

    def _joined(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what `GenericRoIExtractor` makes of all regions on all levels."""
        extractor = self.extractor
        if len(levels) == 1:
            return levels[0]
        if extractor.with_pre:
            levels = [extractor.pre_module(one) for one in levels]
        joined = sum(levels) if extractor.aggregation == 'sum' else torch.cat(list(levels), dim=1)
        return extractor.post_module(joined) if extractor.with_post else joined

    def levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the level (R,) int64 of each region, as `SingleRoIExtractor.map_roi_levels` does.

        Its logarithm is a comparison here, which every engine rounds alike.
        """
        sides = boxes[:, 2:] - boxes[:, :2]
        ratio = (sides[:, 0] * sides[:, 1]).sqrt() / self.extractor.finest_scale + 1e-6
        level = torch.zeros_like(ratio, dtype=torch.int64)
        for least in self.begins:
            level = level + (ratio >= least).to(torch.int64)
        return level


def _grown(boxes: torch.Tensor, factor: float) -> torch.Tensor:
    """Return boxes (R, 4) with their sides multiplied, as `roi_rescale` does."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * factor * 0.5
    return torch.cat([centre - half, centre + half], dim=1)


def _least(level: int) -> float:
    """Return the smallest float32 whose base-2 logarithm, rounded to float32, is at least `level`."""
    value = np.float32(2**level)
    for _ in itertools.count():
        below = np.nextafter(value, np.float32(0))
        if np.float32(np.log2(np.float64(below))) < level:
            return float(value)
        value = below


def part_of(roi_head: nn.Module, name: str, stage: int) -> nn.Module:
    """Return a part of a stage; heads without stages have one of each."""
    part = getattr(roi_head, name)
    return part[stage] if isinstance(part, nn.ModuleList) else part


def stages_of(roi_head: nn.Module) -> int:
    """Return how many stages a head of regions has."""
    return int(getattr(roi_head, 'num_stages', 1))


class Branch(nn.Module):
    """Regions of a batch through an extractor, shared layers and a head."""

    def __init__(self, roi_head: nn.Module, kind: str, stage: int, constant: bool = False) -> None:
        """Keep the parts of one stage; `kind` is 'bbox' or 'mask', for `constant` see `pool_level`."""
        super().__init__()
        self.pool = Pool(part_of(roi_head, f'{kind}_roi_extractor', stage), constant)
        self.shared = roi_head.shared_head if roi_head.with_shared_head else nn.Identity()
        self.head = part_of(roi_head, f'{kind}_head', stage)
        self.grown = getattr(roi_head, 'reg_roi_scale_factor', None) if kind == 'bbox' else None

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the head's outputs (R, ...) of boxes (B, K, 4), pixels of the network input."""
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1])
        given = maps, boxes.flatten(0, 1), images.flatten()
        views = [None] if self.grown is None else [None, self.grown]
        return tuple(_flat(self.head(*(self.shared(self.pool(*given, grown)) for grown in views))))


def _flat(outputs: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a head's outputs, in order."""
    for one in outputs if isinstance(outputs, tuple | list) else (outputs,):
        if isinstance(one, torch.Tensor):
            yield one
        else:
            yield from _flat(one)
