"""The networks of SOLO, Decoupled SOLO and SOLOv2 as modules for graphs of any size and batch.

Steps of mmdet's `get_results` (SOLOv2's sigmoid and points NMS, flattening) are done here.
Source: mmdet 2.28.2 `models/dense_heads/{solo_head,solov2_head}.py`.
Glossary: B batch, C classes, g grid of a level, S cells of all levels (sum of g squared), G lines of all
levels (sum of g), D channels of a level, E channels of a dynamic kernel, H, W network input in pixels, h, w
size of a level, H4, W4 a quarter of the input.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmdeploy_ext.base.taps import tap

Maps = list[torch.Tensor]
"""Maps of all levels, the finest first."""
UPSAMPLING = 2
"""SOLO and Decoupled SOLO predict masks on maps twice the size of their level."""


class Coordinates(nn.Module):
    """Coordinates of pixels."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, 2, h, w) x and y in -1..1, ends included; a side of 1 has -1."""
        batch, height, width = features.shape[0], features.shape[2], features.shape[3]
        x = self._line(width, features)[None, None, None, :].expand(batch, 1, height, width)
        y = self._line(height, features)[None, None, :, None].expand(batch, 1, height, width)
        return torch.cat([x, y], dim=1)

    @staticmethod
    def _line(size: int, like: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(size, dtype=like.dtype, device=like.device)
        return steps * (2 / steps[-1:].clamp(min=1)) - 1


def resize(features: torch.Tensor, size: Sequence[int] | int) -> torch.Tensor:
    """Resize (B, C, h, w) bilinearly with half-pixel centres."""
    return F.interpolate(features, size=size, mode='bilinear', align_corners=False)


def points_nms(logits: torch.Tensor) -> torch.Tensor:
    """Return scores of logits (B, C, g, g): zero where the cell above, left or above left scores more."""
    scores = logits.sigmoid()
    local_max = F.max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (local_max == scores).to(scores.dtype)


def flat_cells(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (B, S, D) of levels (B, D, g, g): cells row by row, level after level."""
    return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)


def run_tower(layers: Sequence[nn.Module], features: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        features = layer(features)
    return features


class SoloNetwork(nn.Module):
    """Backbone, neck and level inputs of the four heads, and common steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.coordinates = Coordinates()

    @property
    def head(self) -> nn.Module:
        return self.model.mask_head

    def levels(self, image: torch.Tensor) -> tuple[Maps, tuple[torch.Tensor, ...]]:
        """Return the level inputs (B, D, h, w) and the neck's outputs."""
        pyramid = self.model.extract_feat(image)
        return self.head.resize_feats(pyramid), pyramid

    def category(self, features: torch.Tensor, grid: int) -> torch.Tensor:
        """Return the class logits (B, C, g, g) of a level (B, D, h, w) of SOLO or Decoupled SOLO."""
        for index, layer in enumerate(self.head.cls_convs):
            if index == self.head.cls_down_index:
                features = resize(features, grid)
            features = layer(features)
        return self.head.conv_cls(features)

    def soft_masks(self, logits: torch.Tensor, first_level: torch.Tensor) -> torch.Tensor:
        """Return probabilities (B, masks, H4, W4) of logits (B, masks, 2h, 2w): sigmoid, then resize."""
        size = (first_level.shape[2] * UPSAMPLING, first_level.shape[3] * UPSAMPLING)
        return resize(logits.sigmoid(), size)


class SoloLevels(SoloNetwork):
    """`SOLOHead`: categories and soft masks of every cell, by level."""

    def forward(self, image: torch.Tensor) -> tuple[Maps, Maps]:
        """Return per level class logits (B, C, g, g) and soft masks (B, g * g, H4, W4)."""
        inputs, _ = self.levels(image)
        logits, features = self.features(inputs)
        masks = [
            self.soft_masks(conv(level), inputs[0])
            for conv, level in zip(self.head.conv_mask_list, features, strict=True)
        ]
        return logits, masks

    def features(self, inputs: Maps) -> tuple[Maps, Maps]:
        """Return per level logits (B, C, g, g) and the inputs of mask convolutions (B, channels, 2h, 2w)."""
        logits, features = [], []
        for level, grid in zip(inputs, self.head.num_grids, strict=True):
            hidden = run_tower(self.head.mask_convs, torch.cat([level, self.coordinates(level)], 1))
            features.append(F.interpolate(hidden, scale_factor=UPSAMPLING, mode='bilinear'))
            logits.append(self.category(level, grid))
        return logits, features


class DecoupledLevels(SoloNetwork):
    """`DecoupledSOLOHead` and `DecoupledSOLOLightHead`: categories and soft columns and rows."""

    def forward(self, image: torch.Tensor) -> tuple[Maps, Maps, Maps]:
        """Return per level class logits (B, C, g, g) and soft masks in x and in y (B, g, H4, W4)."""
        inputs, _ = self.levels(image)
        logits, masks_x, masks_y = [], [], []
        for index, (level, grid) in enumerate(zip(inputs, self.head.num_grids, strict=True)):
            hidden_x, hidden_y = (
                F.interpolate(hidden, scale_factor=UPSAMPLING, mode='bilinear')
                for hidden in self.towers(level)
            )
            masks_x.append(self.soft_masks(self.head.conv_mask_list_x[index](hidden_x), inputs[0]))
            masks_y.append(self.soft_masks(self.head.conv_mask_list_y[index](hidden_y), inputs[0]))
            logits.append(self.category(level, grid))
        return logits, masks_x, masks_y

    def towers(self, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden maps for x and for y (B, channels, h, w) of a level (B, D, h, w)."""
        coordinates = self.coordinates(level)
        return (
            run_tower(self.head.mask_convs_x, torch.cat([level, coordinates[:, :1]], 1)),
            run_tower(self.head.mask_convs_y, torch.cat([level, coordinates[:, 1:]], 1)),
        )


class DecoupledLightLevels(DecoupledLevels):
    """`DecoupledSOLOLightHead`: one tower gives both."""

    def towers(self, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = run_tower(self.head.mask_convs, torch.cat([level, self.coordinates(level)], 1))
        return hidden, hidden


class SoloV2Levels(SoloNetwork):
    """`SOLOV2Head`: categories and kernels of every cell, one mask feature map."""

    def forward(self, image: torch.Tensor) -> tuple[Maps, Maps, torch.Tensor]:
        """Return per level logits (B, C, g, g) and kernels (B, E, g, g); the mask features (B, E, H4, W4)."""
        inputs, pyramid = self.levels(image)
        logits, kernels = [], []
        for level, grid in zip(inputs, self.head.num_grids, strict=True):
            placed = resize(torch.cat([level, self.coordinates(level)], 1), grid)
            kernels.append(self.head.conv_kernel(run_tower(self.head.kernel_convs, placed)))
            logits.append(self.head.conv_cls(run_tower(self.head.cls_convs, placed[:, :-2])))
        return logits, kernels, self.mask_features(pyramid)

    def mask_features(self, pyramid: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the mask features (B, E, H4, W4); after a ReLU, not negative."""
        branch = self.head.mask_feature_head
        inputs = list(pyramid[branch.start_level : branch.end_level + 1])
        if len(inputs) > 1:
            inputs[-1] = torch.cat([inputs[-1], self.coordinates(inputs[-1])], 1)
        total = branch.convs_all_levels[0](inputs[0])
        for convs, level in zip(branch.convs_all_levels[1:], inputs[1:], strict=True):
            total = total + convs(level)
        return branch.conv_pred(total)


LEVELS = {
    'SOLOHead': SoloLevels,
    'DecoupledSOLOHead': DecoupledLevels,
    'DecoupledSOLOLightHead': DecoupledLightLevels,
    'SOLOV2Head': SoloV2Levels,
}


class BatchedNetwork(nn.Module):
    """The `raw` form: cells of all levels in one tensor, with a batch axis.

    `cate_pred` (B, S, C) and, by head, `seg_pred` (B, S, H4, W4); `seg_pred_x`, `seg_pred_y` (B, G, H4, W4);
    `kernel_pred` (B, S, E) and `seg_pred` (B, E, H4, W4).
    """

    def __init__(self, levels: SoloNetwork, names: Sequence[str]) -> None:
        super().__init__()
        self.levels = levels
        self.names = tuple(names)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors of `names`, then class logits (B, C, g, g) of each level."""
        logits, *rest = self.levels(image)
        if isinstance(self.levels, SoloV2Levels):
            flat = (flat_cells(rest[0]), rest[1])
        else:
            flat = tuple(torch.cat(maps, dim=1) for maps in rest)
        outputs = (flat_cells([points_nms(level) for level in logits]), *flat, *logits)
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))


class ForkNetwork(nn.Module):
    """The outputs of the fork zhangjinsong3/SOLOv2.tensorRT (790835b), in its order.

    SOLOv2: per image scores (S, C), then kernels (S, E), then the mask features; if not
    `graphs.fork_is_flat`, per level scores (B, g, g, C), then kernels (B, E, g, g), then the mask features.
    Decoupled, per level: x masks (B, g, H4, W4), y masks, scores (B, g, g, C). SOLO, per level: masks (B, g *
    g, H4, W4), scores (B, g, g, C).
    """

    def __init__(self, levels: SoloNetwork, flat: bool) -> None:
        super().__init__()
        self.levels = levels
        self.flat = flat

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, *rest = self.levels(image)
        scores = [points_nms(level) for level in logits]
        if self.flat:
            return (*flat_cells(scores).unbind(0), *flat_cells(rest[0]).unbind(0), rest[1])
        last = [level.permute(0, 2, 3, 1) for level in scores]
        if isinstance(self.levels, SoloV2Levels):
            return (*last, *rest[0], rest[1])
        return (*(level for maps in rest for level in maps), *last)


class SoloFeatures(nn.Module):
    """`SOLOHead` for the `full` form: scores, and inputs of the masks of chosen cells."""

    def __init__(self, levels: SoloLevels) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return scores (B, S, C), per level (B, channels, 2h, 2w), and class logits (B, C, g, g)."""
        inputs, _ = self.levels.levels(image)
        logits, features = self.levels.features(inputs)
        scores = flat_cells([points_nms(level) for level in logits])
        return (tap('cate_pred', scores), *features, *logits)
