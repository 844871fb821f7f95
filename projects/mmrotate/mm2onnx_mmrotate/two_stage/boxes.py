"""From proposals to scored boxes: features of regions, the heads of mmrotate, and their decoded boxes.

Source: mmrotate 0.3.4 `models/roi_heads`, `bbox_heads/rotated_bbox_head.py`, `bbox_heads/gv_bbox_head.py`.

Glossary: B batch, K regions of an image, R = B * K, C classes, G boxes per region (C, or 1 if the regression
is class-agnostic), h, w of the pooled cells of a region. The 5 numbers of a rotated box are x, y of the
centre, width, height in pixels, and angle in radians, see `detections.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm2onnx_mmrotate.two_stage.coders import CODERS
from mm2onnx_mmrotate.two_stage.heads import coder_of, output_columns
from mm2onnx_mmrotate.two_stage.roi_align_rotated import pool_rotated
from mmdeploy_ext.families.heads import class_scores
from mmdeploy_ext.families.regions import Pool, part_of, stages_of


class UprightPool(Pool):
    """A `SingleRoIExtractor`, whose regions may have no size: mmrotate keeps such proposals; see `Pool`.

    An `aligned` layer of mmcv that gives no number of samples takes as many of a cell as it is long: none of
    a region without a width or a height, whose features are zero. OpenVINO takes one. A layer that is not
    aligned takes every region for one cell of its map long at least.
    """

    def forward(
        self, maps: Sequence[Tensor], boxes: Tensor, images: Tensor, factor: float | None = None
    ) -> Tensor:
        """Return features (R, channels, h, w) of boxes (R, 4) xyxy in pixels of the network input.

        `maps` are those of all levels (B, channels, H, W), `images` (R,) int64 the index of each box's image
        in the batch. Sides are multiplied by `factor` before pooling, not for the choice of the level; None
        keeps them, see `Pool.forward`.
        """
        pooled = super().forward(maps, boxes, images, factor)
        layer = self.extractor.roi_layers[0]
        # a layer that moves cells has no `aligned`: it always is
        if layer.sampling_ratio > 0 or not getattr(layer, 'aligned', True):
            return pooled
        has_size = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)[:, None, None, None]
        return torch.where(has_size, pooled, torch.zeros_like(pooled))


class RotatedPool(Pool):
    """A `RotatedSingleRoIExtractor`: every rotated region from the level of its size, see `Pool.levels`."""

    def forward(
        self, maps: Sequence[Tensor], boxes: Tensor, images: Tensor, factor: float | None = None
    ) -> Tensor:
        """Return features (R, channels, h, w) of rotated boxes (R, 5); `factor` is not used.

        `maps` and `images` are as in `UprightPool.forward`.
        """
        layers = self.extractor.roi_layers
        return pool_rotated(maps[: len(layers)], boxes, images, self.levels(boxes), layers)

    def levels(self, boxes: Tensor) -> Tensor:
        return super().levels(torch.cat([torch.zeros_like(boxes[:, 2:4]), boxes[:, 2:4]], 1))


class Stage(nn.Module):
    """The pooled features of regions, the head that takes them, and its boxes."""

    def __init__(self, roi_head: nn.Module, index: int, rotated: bool) -> None:
        """Keep extractor and head of the stage `index`, counted from 0.

        `rotated` is whether its regions are rotated boxes.
        """
        super().__init__()
        extractor = part_of(roi_head, 'bbox_roi_extractor', index)
        self.pool = (RotatedPool if rotated else UprightPool)(extractor)
        self.shared = getattr(roi_head, 'shared_head', None) or nn.Identity()
        self.head = part_of(roi_head, 'bbox_head', index)
        self.coder, self.columns = coder_of(self.head), output_columns(self.head)

    def outputs(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return class logits (B, K, C + 1) and name -> other outputs of the head (B, K, G, columns).

        The logits of a loss with columns of its own (SeesawLoss) are (B, K, C + 2).

        Regions are (B, K, 4) xyxy or (B, K, 5) boxes in pixels of the network input, `maps` those of each
        level (B, channels, H, W) that they are pooled from.
        """
        rows = regions.shape[:2]
        images = torch.arange(rows[0], device=regions.device)[:, None].expand(-1, rows[1]).flatten()
        features = self.shared(self.pool(maps, regions.flatten(0, 1), images))
        logits, *box_outputs = self.head(features)
        columns = zip(self.columns, box_outputs, strict=True)
        named = {name: values.reshape(*rows, -1, count) for (name, count), values in columns}
        return logits.reshape(*rows, -1), named

    def decode(self, regions: Tensor, rows: dict[str, Tensor], clip_hw: Tensor) -> Tensor:
        """Return boxes (B, K, G, 5) by the coder of the head; for what is clipped to `clip_hw` see `CODERS`.

        `rows` are the outputs of the head for the regions by name, see `outputs`; `clip_hw` (B, 2) is height
        and width. Of the coders 'upright_delta' clips nothing, 'rotated_delta' the centres, 'gliding_vertex'
        the upright box if its setting `clip` is True.
        """
        return CODERS[self.coder.type](torch, regions[:, :, None], rows, self.coder, clip_hw)

    def activated(self, logits: Tensor) -> Tensor:
        """Return class scores (B, K, C) of the logits of `outputs`, without the background."""
        if self.head.custom_cls_channels:
            return self.head.loss_cls.get_activation(logits)[..., :-1]
        return class_scores(torch, 'softmax', logits)


class Boxes(nn.Module):
    """All stages of the heads of regions, up to the outputs that `last` makes scored boxes of."""

    def __init__(self, roi_head: nn.Module, oriented: bool) -> None:
        """Keep the stages; `oriented` is whether proposals are rotated boxes."""
        super().__init__()
        self.oriented = oriented
        count = stages_of(roi_head)
        self.stages = nn.ModuleList(Stage(roi_head, index, oriented or index > 0) for index in range(count))

    def forward(
        self, maps: Sequence[Tensor], proposals: Tensor, clip_hw: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the regions of the last stage, its outputs by name, and class logits.

        Regions are (B, K, 4 or 5), outputs (B, K, G, columns), and the logits, of the shape that
        `Stage.outputs` states, the mean of all stages. `proposals` are the regions of the first stage; for
        the other arguments see `Stage`.
        """
        regions, stage_logits = proposals, []
        for index, stage in enumerate(self.stages):
            logits, rows = stage.outputs(maps, regions)
            stage_logits.append(logits)
            if index + 1 < len(self.stages):  # of one box for all classes
                regions = stage.decode(regions, rows, clip_hw)[:, :, 0]
        return regions, rows, sum(stage_logits) / float(len(stage_logits))

    @property
    def last(self) -> Stage:
        """The stage whose boxes are the results."""
        return self.stages[-1]
