"""Sparse R-CNN and QueryInst: learned queries, each with a region that dynamic heads look at and move.

Source: mmdet 2.28.2 `dense_heads/embedding_rpn_head.py`, `roi_heads/sparse_roi_head.py`,
`roi_heads/bbox_heads/dii_head.py` and `roi_heads/mask_heads/dynamic_mask_head.py`.
Glossary: B batch, Q queries, C classes, D embedding, R = B * Q, n detections, m side of a mask in cells, H, W
network input in pixels, h, w pooled cells of a region.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import gather_rows
from mmdeploy_ext.families.common.image_graphs import clip_size
from mmdeploy_ext.families.common.mask_heads import predicted_class_only
from mmdeploy_ext.families.common.query_networks import attend_to
from mmdeploy_ext.families.common.regions import Regions, decoded, feature_names, has_masks, stages_of
from mmdeploy_ext.families.query.postprocess import FULL_NAMES, best_pairs
from mmdeploy_ext.upstream.models.conditional_detr import cxcywh_to_xyxy

NAMES = ('logits', 'boxes')


class RegionsNetwork(nn.Module):
    """`SparseRoIHead` with flat tensors, up to the boxes of its last stage."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        stages = range(stages_of(model.roi_head))
        self.regions = nn.ModuleList(Regions(model.roi_head, 'bbox', stage) for stage in stages)
        self.names = (*NAMES, 'attended', *feature_names(model)) if has_masks(model) else NAMES

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return class logits (B, Q, C), with a softmax C + 1, and boxes (B, Q, 4) xyxy, pixels of the input.

        With masks also the last queries after their attention (B, Q, D), and the maps of regions. `image` is
        (B, 3, H, W) normalised; `img_shape` (B, 2) is h, w before padding; 0 means the input size.
        """
        maps = self.model.extract_feat(image)
        outputs = (*self.look(maps, clip_size(image, img_shape)), *maps)
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=False))

    def look(self, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors before the maps in `forward`; `clip_hw` (B, 2) is not 0."""
        learned = self.model.rpn_head
        size_whwh = clip_hw.flip(1).repeat(1, 2)[:, None]
        boxes = cxcywh_to_xyxy(learned.init_proposal_bboxes.weight)[None] * size_whwh
        first = learned.init_proposal_features.weight[None]
        query = first.repeat(maps[0].shape[0], 1, 1)  # of an expanded one torch.export freezes the batch
        for regions, head in zip(self.regions, self.model.roi_head.bbox_head, strict=True):
            logits, deltas, query, attended = interact(head, regions.features(maps, boxes), query)
            boxes = decoded(head, boxes, (deltas,), clip_hw)[0][:, :, 0]
        return logits, boxes, attended


def interact(head: nn.Module, features: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run mmdet's `DIIHead`: queries (B, Q, D) look at each other, then at their regions (R, D, h, w).

    Returns class logits (B, Q, C), with a softmax C + 1, deltas (B, Q, 4), queries of the next stage (B, Q,
    D), and queries after their attention (B, Q, D).
    """
    attended = head.attention_norm(query + attend_to(head.attention, query, query, query))
    rows = attended.flatten(0, 1)
    rows = head.instance_interactive_conv_norm(rows + head.instance_interactive_conv(rows, features))
    query = head.ffn_norm(head.ffn(rows)).reshape(query.shape)
    scores = moves = query
    for layer in head.cls_fcs:
        scores = layer(scores)
    for layer in head.reg_fcs:
        moves = layer(moves)
    return head.fc_cls(scores), head.fc_reg(moves), query, attended


class RegionsFullForm(nn.Module):
    """The form `full`: best pairs of query and class, and their masks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        roi_head, last = model.roi_head, stages_of(model.roi_head) - 1
        self.max_per_img = int(roi_head.test_cfg.max_per_img)
        self.sigmoid = bool(roi_head.bbox_head[last].loss_cls.use_sigmoid)
        self.regions = Regions(roi_head, 'mask', last) if has_masks(model) else None
        self.mask_head = roi_head.mask_head[last] if has_masks(model) else None
        self.names = (*FULL_NAMES, 'masks') if has_masks(model) else FULL_NAMES

    def forward(
        self, scale_factor: torch.Tensor, logits: torch.Tensor, boxes: torch.Tensor, *of_masks: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 5) xyxy and score, best first, labels (B, n), and any masks (B, n, m, m).

        `scale_factor` (B, 4) is `w h w h`, input / original; `boxes` (B, Q, 4) are xyxy, pixels of the input.
        """
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(2)[..., :-1]
        scores, labels, query = best_pairs(scores, self.max_per_img)
        best = gather_rows(boxes, query)
        outputs = [torch.cat([best / scale_factor[:, None], scores[..., None]], 2), labels]
        if self.mask_head is not None:
            attended, *maps = of_masks
            queries = gather_rows(attended, query)
            with predicted_class_only([self.mask_head], labels.flatten()):
                masks = self.mask_head(self.regions.features(maps, best), queries).sigmoid()
            outputs.append(masks.reshape(*labels.shape, *masks.shape[2:]))
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))
