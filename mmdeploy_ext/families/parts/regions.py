"""Features of regions, and the heads that look at them: mmdet's own layers, pooled by ONNX's RoiAlign.

Glossary: B batch, K regions of an image, R = B * K, C classes, L levels, G boxes per region (C, or 1 where
the regression does not know classes).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.ops import SimpleRoIAlign
from mmdet.models.roi_heads import roi_extractors as extractors
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.ops.roi_align import check_layer, pool_level
from mmdeploy_ext.families.parts import region_sampling

EXTRACTORS = (extractors.SingleRoIExtractor, extractors.GenericRoIExtractor)


def check_extractor(extractor: nn.Module) -> None:
    """Refuse (ConfigError) what the graph does not compute as mmdet does."""
    if type(extractor) not in EXTRACTORS:
        known = ', '.join(one.__name__ for one in EXTRACTORS)
        raise ConfigError(f'{type(extractor).__name__}: no extractor of regions that is exported ({known})')
    by_points = isinstance(extractor, extractors.GenericRoIExtractor)
    for layer in extractor.roi_layers:
        moved = not by_points and isinstance(layer, region_sampling.MOVING)
        if not moved and not (by_points and isinstance(layer, SimpleRoIAlign)):
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
            boxes: (R, 4) xyxy, pixels of the network input, image by image, equally many of each.
            images: (R,) int64 index into the batch.
            grown: what the sides of boxes are multiplied by before pooling; levels are those of the boxes.
        """
        layers = self.extractor.roi_layers
        pairs = list(zip(layers, maps[: len(layers)], strict=True))
        shape = (boxes.shape[0], maps[0].shape[1], *layers[0].output_size)
        pooled = maps[0].new_zeros(shape)
        if any(isinstance(layer, SimpleRoIAlign) for layer in layers):
            return self._joined([region_sampling.pooled(layer, one, boxes) for layer, one in pairs])
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
            pool = region_sampling.pool_moved if isinstance(layer, region_sampling.MOVING) else pool_level
            pooled = pool(pooled, one, boxes, images, levels, level, layer, self.constant)
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


class Added(nn.Module):
    """What HTC and SCNet add to the features of regions: those of a semantic map, and of the whole image.

    The maps stand behind the levels, in the order of `context_names`.
    """

    def __init__(self, roi_head: nn.Module, kind: str, constant: bool = False) -> None:
        super().__init__()
        self.names = context_names(roi_head)
        fused = 'semantic' in self.names and kind in getattr(roi_head, 'semantic_fusion', (kind,))
        self.pool = Pool(roi_head.semantic_roi_extractor, constant) if fused else None
        self.cells = _cells(roi_head, kind) if fused else (1, 1)

    def forward(
        self, pooled: torch.Tensor, maps: Sequence[torch.Tensor], boxes: torch.Tensor, images: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum (R, C, h, w); `maps` are of all levels, then those of `context_names`."""
        given = dict(zip(self.names, maps[len(maps) - len(self.names) :], strict=True))
        if self.pool is not None:
            semantic = self.pool([given['semantic']], boxes, images)
            whole = self.cells == (1, 1)
            pooled = pooled + (semantic if whole else nn.functional.avg_pool2d(semantic, self.cells))
        if 'context' in given:
            pooled = pooled + given['context'].index_select(0, images)
        return pooled


def _cells(roi_head: nn.Module, kind: str) -> tuple[int, int]:
    """Return how many cells of the pooled semantic map are one cell of a region, in y and in x.

    ConfigError: it is no whole number, where mmdet averages over windows of several sizes.
    """
    own = part_of(roi_head, f'{kind}_roi_extractor', 0).roi_layers[0].output_size
    semantic = roi_head.semantic_roi_extractor.roi_layers[0].output_size
    if any(larger % side for larger, side in zip(semantic, own, strict=True)):
        raise ConfigError(
            f'model.roi_head.semantic_roi_extractor: output_size {tuple(semantic)} is no multiple of '
            f'{tuple(own)}, that of {kind}_roi_extractor'
        )
    return tuple(larger // side for larger, side in zip(semantic, own, strict=True))


def context_names(roi_head: nn.Module) -> tuple[str, ...]:
    """Return the names of the maps of whole images that a head of regions makes of the levels."""
    kinds = dict(semantic='with_semantic', context='with_glbctx')
    return tuple(name for name, flag in kinds.items() if getattr(roi_head, flag, False))


def context_maps(roi_head: nn.Module, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the maps of `context_names`: semantic features (B, C, h, w), context (B, C, 1, 1)."""
    heads = dict(semantic='semantic_head', context='glbctx_head')
    return [getattr(roi_head, heads[name])(levels)[1] for name in context_names(roi_head)]


def part_of(roi_head: nn.Module, name: str, stage: int) -> nn.Module:
    """Return a part of a stage; heads without stages have one of each."""
    part = getattr(roi_head, name)
    return part[stage] if isinstance(part, nn.ModuleList) else part


def stages_of(roi_head: nn.Module) -> int:
    """Return how many stages a head of regions has."""
    return int(getattr(roi_head, 'num_stages', 1))


class Regions(nn.Module):
    """Features of the regions of a batch, by an extractor, what is added to them, and shared layers."""

    def __init__(self, roi_head: nn.Module, kind: str, stage: int, constant: bool = False) -> None:
        """Keep the parts of one stage; `kind` is 'bbox' or 'mask', for `constant` see `pool_level`."""
        super().__init__()
        self.pool = Pool(part_of(roi_head, f'{kind}_roi_extractor', stage), constant)
        self.added = Added(roi_head, kind, constant) if context_names(roi_head) else None
        self.shared = roi_head.shared_head if roi_head.with_shared_head else nn.Identity()

    def features(
        self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, grown: float | None = None
    ) -> torch.Tensor:
        """Return features (R, ...) of boxes (B, K, 4), pixels of the network input; `grown`: see `Pool`."""
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1])
        given = boxes.flatten(0, 1), images.flatten()
        pooled = self.pool(maps, *given, grown)
        return self.shared(pooled if self.added is None else self.added(pooled, maps, *given))


class Branch(Regions):
    """Regions of a batch and the head that looks at them."""

    def __init__(self, roi_head: nn.Module, kind: str, stage: int, constant: bool = False) -> None:
        super().__init__(roi_head, kind, stage, constant)
        self.head = part_of(roi_head, f'{kind}_head', stage)
        self.grown = getattr(roi_head, 'reg_roi_scale_factor', None) if kind == 'bbox' else None

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        boxes: torch.Tensor,
        seen: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the head's outputs (R, ...) of boxes (B, K, 4), pixels of the network input.

        `seen` gets the features (R, channels, h, w) that the head looks at, by name.
        """
        views = [None] if self.grown is None else [None, self.grown]
        features = [self.features(maps, boxes, grown) for grown in views]
        if seen is not None:
            seen.append(dict(region_features=features[0]))
        return tuple(flat(self.head(*features)))


def flat(outputs: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a head's outputs, in order; heads without a regression give None for it."""
    for one in outputs if isinstance(outputs, tuple | list) else (outputs,):
        if isinstance(one, torch.Tensor):
            yield one
        elif one is not None:
            yield from flat(one)
