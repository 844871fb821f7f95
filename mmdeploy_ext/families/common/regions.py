"""Features of regions, their heads and boxes: mmdet's own layers, pooled by RoiAlign.

Sources: mmdet 2.28.2 `roi_heads/roi_extractors`, `bbox_heads/bbox_head.py`; mmcv 1.7.2 `ops/point_sample.py`;
`upstream/compat/plain_kernels.py` for deformable and modulated pooling, which move each cell as a region.
Glossary: B batch, K regions of an image, R = B * K, C classes, P points of a box, G boxes per region (C, or 1
if class-agnostic), H, W size of a map, h, w of the pooled cells of a region.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.ops import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoIAlign, SimpleRoIAlign
from mmcv.ops.point_sample import generate_grid
from mmdet.models.roi_heads import bbox_heads
from mmdet.models.roi_heads import roi_extractors as extractors
from torch import nn
from torch.nn import functional

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import clip_to
from mmdeploy_ext.families.common.dense_heads import border_inset, bucket_settings, chosen_coder, clips
from mmdeploy_ext.runtime.box_coders import Bucket, Coder
from mmdeploy_ext.upstream.compat.plain_kernels import bins_of
from mmdeploy_ext.upstream.operators.operator import hw
from mmdeploy_ext.upstream.operators.roi_align import check_layer, pool_level

EXTRACTORS = (extractors.SingleRoIExtractor, extractors.GenericRoIExtractor)
MOVING_LAYERS = (DeformRoIPoolPack, ModulatedDeformRoIPoolPack)
"""Layers that move cells of a region before pooling."""


# --- the head of regions of a detector ------------------------------------------------------------------


def roi_head_of(model: nn.Module) -> nn.Module | None:
    return getattr(model, 'roi_head', None)


def has_masks(model: nn.Module) -> bool:
    roi_head = roi_head_of(model)
    return roi_head is not None and bool(roi_head.with_mask)


def grid_of(roi_head: nn.Module) -> nn.Module | None:
    return getattr(roi_head, 'grid_head', None)


def stages_of(roi_head: nn.Module) -> int:
    return int(getattr(roi_head, 'num_stages', 1))


def part_of(roi_head: nn.Module, name: str, stage: int) -> nn.Module:
    part = getattr(roi_head, name)
    return part[stage] if isinstance(part, nn.ModuleList) else part


def context_names(roi_head: nn.Module) -> tuple[str, ...]:
    flags = dict(semantic='with_semantic', context='with_glbctx')
    return tuple(name for name, flag in flags.items() if getattr(roi_head, flag, False))


def feature_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the maps for regions: levels, then `context_names`."""
    roi_head = roi_head_of(model)
    if roi_head is None:
        return ()
    kinds = ('bbox', 'mask') if roi_head.with_mask else ('bbox',)
    pools = [
        part_of(roi_head, f'{kind}_roi_extractor', stage)
        for kind in kinds
        for stage in range(stages_of(roi_head))
    ]
    if grid_of(roi_head) is not None:
        pools.append(roi_head.grid_roi_extractor)
    levels = range(max(pool.num_inputs for pool in pools))
    return (*(f'features_{level}' for level in levels), *context_names(roi_head))


def region_maps(model: nn.Module, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the maps of `feature_names` of all levels.

    `context_names` are semantic features (B, channels, H, W) and context (B, channels, 1, 1).
    """
    roi_head = roi_head_of(model)
    if roi_head is None:
        return []
    names = context_names(roi_head)
    maps = list(levels[: len(feature_names(model)) - len(names)])
    if 'semantic' in names:
        maps.append(roi_head.semantic_head(levels)[1])
    if 'context' in names:
        maps.append(roi_head.glbctx_head(levels)[1])
    return maps


# --- pooling --------------------------------------------------------------------------------------------


def check_extractor(extractor: nn.Module) -> None:
    if not isinstance(extractor, EXTRACTORS):
        exported = ', '.join(extractor_class.__name__ for extractor_class in EXTRACTORS)
        raise ConfigError(
            f'{type(extractor).__name__}: this region extractor is not supported (supported: {exported})'
        )
    allowed = MOVING_LAYERS
    if isinstance(extractor, extractors.GenericRoIExtractor):
        allowed = SimpleRoIAlign
    for layer in extractor.roi_layers:
        if not isinstance(layer, allowed):
            check_layer(layer)


class Pool(nn.Module):
    """An extractor of regions, by one level or all."""

    def __init__(self, extractor: nn.Module, constant: bool = False) -> None:
        super().__init__()
        self.extractor, self.constant = extractor, constant
        self.begins: list[float] = []
        for level in range(1, extractor.num_inputs):
            # the least float32 whose base-2 logarithm, rounded to float32, reaches the level
            ratio = np.float32(2**level)
            while np.float32(np.log2(np.float64(below := np.nextafter(ratio, np.float32(0))))) >= level:
                ratio = below
            self.begins.append(float(ratio))

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        boxes: torch.Tensor,
        images: torch.Tensor,
        factor: float | None = None,
    ) -> torch.Tensor:
        """Return features (R, channels, h, w).

        Args:
            maps: of all levels (B, channels, H, W); further maps are ignored.
            boxes: (R, 4) xyxy, pixels of the network input, image by image, equally many of each.
            images: (R,) int64 index into the batch.
            factor: scale of boxes before pooling, or None; unused with one level (as in mmdet). Levels follow
                the unscaled boxes.
        """
        layers = self.extractor.roi_layers
        pairs = list(zip(layers, maps[: len(layers)], strict=True))
        factor = None if len(pairs) == 1 else factor
        shape = (boxes.shape[0], maps[0].shape[1], *layers[0].output_size)
        pooled = maps[0].new_zeros(shape)
        if isinstance(self.extractor, extractors.GenericRoIExtractor):
            boxes = _enlarged(boxes, factor)
            if any(isinstance(layer, SimpleRoIAlign) for layer in layers):
                return self._joined([pool_points(layer, level_map, boxes) for layer, level_map in pairs])
            levels = torch.zeros_like(images)
            return self._joined(
                [
                    pool_level(pooled, level_map, boxes, images, levels, 0, layer, self.constant)
                    for layer, level_map in pairs
                ]
            )
        levels = self.levels(boxes)
        boxes = _enlarged(boxes, factor)
        for level, (layer, level_map) in enumerate(pairs):
            pool = pool_moved if isinstance(layer, MOVING_LAYERS) else pool_level
            pooled = pool(pooled, level_map, boxes, images, levels, level, layer, self.constant)
        return pooled

    def _joined(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        extractor = self.extractor
        if len(levels) == 1:
            return levels[0]
        if extractor.with_pre:
            levels = [extractor.pre_module(features) for features in levels]
        joined = sum(levels) if extractor.aggregation == 'sum' else torch.cat(list(levels), dim=1)
        return extractor.post_module(joined) if extractor.with_post else joined

    def levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the level (R,) int64 of each region (`SingleRoIExtractor.map_roi_levels`)."""
        sides = boxes[:, 2:] - boxes[:, :2]
        ratio = (sides[:, 0] * sides[:, 1]).sqrt() / self.extractor.finest_scale + 1e-6
        level = torch.zeros_like(ratio, dtype=torch.int64)
        for begin in self.begins:
            level = level + (ratio >= begin).to(torch.int64)
        return level


def _enlarged(boxes: torch.Tensor, factor: float | None) -> torch.Tensor:
    if factor is None:
        return boxes
    centre, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * factor * 0.5
    return torch.cat([centre - half, centre + half], dim=1)


def sampled(
    maps: torch.Tensor, boxes: torch.Tensor, points: torch.Tensor, scale: float, corners: bool = False
) -> torch.Tensor:
    """Return values (R, channels, P) of a map (B, channels, H, W) at points of boxes (`point_sample`).

    Boxes (R, 4) are xyxy in pixels of the network input, equally many per image; points (R or 1, P, 2) x, y
    in 0..1 of the box; `scale` is cells per pixel; `corners` is `align_corners`.
    """
    size = hw(maps).to(boxes).flip(0)
    places = points * (boxes[:, None, 2:] - boxes[:, None, :2]) + boxes[:, None, :2]
    grid = (places / size * scale) * 2.0 - 1.0
    grid = grid.reshape(maps.shape[0], -1, grid.shape[1], 2)
    values = functional.grid_sample(maps, grid, align_corners=corners)
    return values.transpose(1, 2).reshape(-1, maps.shape[1], grid.shape[2])


def pool_points(layer: SimpleRoIAlign, maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return features (R, channels, h, w) at the middles of the cells of boxes."""
    middles = generate_grid(1, layer.output_size, boxes.device)
    values = sampled(maps, boxes, middles, layer.spatial_scale, not layer.aligned)
    return values.reshape(*values.shape[:2], *layer.output_size)


def pool_moved(
    pooled: torch.Tensor,
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    levels: torch.Tensor,
    level: int,
    layer: nn.Module,
    constant: bool,
) -> torch.Tensor:
    """Fill `pooled` (R, channels, h, w) for the regions of one level by one of `MOVING_LAYERS`.

    `maps` (B, channels, H, W) are of `level`, `boxes` (R, 4) xyxy in pixels of the network input, `images`
    and `levels` (R,) int64.
    """
    height, width = layer.output_size
    scale, ratio, cells = float(layer.spatial_scale), int(layer.sampling_ratio), height * width
    region_layer = RoIAlign((height, width), scale, ratio, 'avg', True)
    first = pool_level(torch.zeros_like(pooled), maps, boxes, images, levels, level, region_layer, constant)
    offset = layer.offset_fc(first.flatten(1)).reshape(-1, 2, height, width)
    bins = bins_of(boxes, offset, (height, width), scale, float(layer.gamma))
    cell_images, cell_levels = (indices[:, None].expand(-1, cells).flatten() for indices in (images, levels))
    zeros = pooled.new_zeros((1,)).expand(bins.shape[0], pooled.shape[1])[..., None, None]
    cell_layer = RoIAlign((1, 1), scale, ratio, 'avg', True)
    features = pool_level(zeros, maps, bins, cell_images, cell_levels, level, cell_layer, constant)
    features = features.reshape(-1, height, width, pooled.shape[1]).permute(0, 3, 1, 2)
    if isinstance(layer, ModulatedDeformRoIPoolPack):
        features = features * layer.mask_fc(first.flatten(1)).reshape(-1, 1, height, width)
    return torch.where((levels == level)[:, None, None, None], features, pooled)


# --- heads and what they take ---------------------------------------------------------------------------


class AddedContext(nn.Module):
    """Features that HTC and SCNet add to regions: semantic map and whole image."""

    def __init__(self, roi_head: nn.Module, kind: str, constant: bool = False) -> None:
        super().__init__()
        self.names = context_names(roi_head)
        fused = 'semantic' in self.names and kind in getattr(roi_head, 'semantic_fusion', (kind,))
        self.pool = Pool(roi_head.semantic_roi_extractor, constant) if fused else None
        self.cells = _semantic_cells(roi_head, kind) if fused else (1, 1)

    def forward(
        self, pooled: torch.Tensor, maps: Sequence[torch.Tensor], boxes: torch.Tensor, images: torch.Tensor
    ) -> torch.Tensor:
        """Return `pooled` (R, channels, h, w) plus the features of `context_names`."""
        context = dict(zip(self.names, maps[len(maps) - len(self.names) :], strict=True))
        if self.pool is not None:
            semantic = self.pool([context['semantic']], boxes, images)
            if self.cells != (1, 1):
                semantic = functional.avg_pool2d(semantic, self.cells)
            pooled = pooled + semantic
        if 'context' in context:
            pooled = pooled + context['context'].index_select(0, images)
        return pooled


def _semantic_cells(roi_head: nn.Module, kind: str) -> tuple[int, int]:
    size = part_of(roi_head, f'{kind}_roi_extractor', 0).roi_layers[0].output_size
    semantic = roi_head.semantic_roi_extractor.roi_layers[0].output_size
    if any(larger % side for larger, side in zip(semantic, size, strict=True)):
        raise ConfigError(
            f'model.roi_head.semantic_roi_extractor: output_size {tuple(semantic)} is not a multiple of '
            f'{tuple(size)}, the output_size of {kind}_roi_extractor'
        )
    return tuple(larger // side for larger, side in zip(semantic, size, strict=True))


class Regions(nn.Module):
    """Features of a batch's regions, by extractor, added context, and shared layers."""

    def __init__(self, roi_head: nn.Module, kind: str, stage: int, constant: bool = False) -> None:
        super().__init__()
        self.pool = Pool(part_of(roi_head, f'{kind}_roi_extractor', stage), constant)
        self.added = AddedContext(roi_head, kind, constant) if context_names(roi_head) else None
        self.shared = roi_head.shared_head if roi_head.with_shared_head else nn.Identity()

    def features(
        self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, factor: float | None = None
    ) -> torch.Tensor:
        """Return features (R, ...) of boxes (B, K, 4), pixels of the network input."""
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1])
        boxes, images = boxes.flatten(0, 1), images.flatten()
        pooled = self.pool(maps, boxes, images, factor)
        if self.added is not None:
            pooled = self.added(pooled, maps, boxes, images)
        return self.shared(pooled)


class RegionBranch(Regions):
    """Regions of a batch and their head."""

    def __init__(self, roi_head: nn.Module, kind: str, stage: int, constant: bool = False) -> None:
        super().__init__(roi_head, kind, stage, constant)
        self.head = part_of(roi_head, f'{kind}_head', stage)
        self.factor = getattr(roi_head, 'reg_roi_scale_factor', None) if kind == 'bbox' else None

    def forward(
        self,
        maps: Sequence[torch.Tensor],
        boxes: torch.Tensor,
        taken_features: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the head's outputs (R, ...) of boxes (B, K, 4), pixels of the network input.

        A list `taken_features` gets a dict with `region_features` (R, channels, h, w), without enlarged
        regions.
        """
        features = [self.features(maps, boxes)]
        if self.factor is not None:  # Double-Head R-CNN: the regression takes larger regions
            features.append(self.features(maps, boxes, self.factor))
        if taken_features is not None:
            taken_features.append(dict(region_features=features[0]))
        return tuple(flat(self.head(*features)))


def flat(outputs: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a head's outputs, in order; None without a regression."""
    for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
        if isinstance(output, torch.Tensor):
            yield output
        elif output is not None:
            yield from flat(output)


# --- boxes ----------------------------------------------------------------------------------------------


def coder_of(head: nn.Module) -> Coder:
    if isinstance(head, bbox_heads.SABLHead):
        return bucket_settings(head)
    return chosen_coder(head, f'model.roi_head.bbox_head ({type(head).__name__})')


def decoded(
    head: nn.Module, regions: torch.Tensor, outputs: Sequence[torch.Tensor], clip_hw: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return boxes (B, K, G, 4) xyxy in pixels, and a side-aware head's score factors (B, K) or None.

    Boxes are clipped to `clip_hw` (B, 2) if the coder clips, a pixel earlier at the right and bottom border
    in mmdet 1.x and side-aware heads. `regions` are (B, K, 4) xyxy, `outputs` (B, K, columns) deltas, or
    `bbox_cls`, `bbox_reg`.
    """
    if not getattr(head, 'with_reg', True):
        return clip_to(regions, clip_hw)[:, :, None], None
    coder, factors, inset = coder_of(head), None, border_inset(head)
    if isinstance(coder, Bucket):  # clipped a pixel before the border
        rows = dict(zip(('bbox_cls', 'bbox_reg'), outputs, strict=True))
        boxes = coder.boxes(torch, regions, rows, 0)[:, :, None]
        factors, inset = coder.choice(torch, rows)[1], 1.0
    else:
        rows = dict(bbox_pred=outputs[0].reshape(*outputs[0].shape[:2], -1, 4))
        boxes = coder.boxes(torch, regions[:, :, None], rows, 0)
    if clips(head):
        boxes = clip_to(boxes.flatten(1, 2), clip_hw, inset).reshape(boxes.shape)
    return boxes, factors
