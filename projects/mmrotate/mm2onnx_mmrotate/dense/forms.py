"""The modules of one-stage detectors of rotated boxes: what a form of the graph adds to the network.

`model` is mmrotate's detector, `head` its last head, `options` are those of the export.

Glossary: B batch, a priors of a cell, A priors of a level or of all, C classes, L levels, H, W network input
in pixels, h, w size of a level's maps, n results of the image that has most (with a cap constant).
"""

import torch
from torch import nn

from mm2onnx_mmrotate.dense.networks import last_head
from mm2onnx_mmrotate.dense.settings import facts_of, generator_of
from mm2onnx_mmrotate.suppression import RotatedSuppression
from mmdeploy_ext.exporting.postprocess.suppression import gather_rows, limit, rows_of
from mmdeploy_ext.families.common.image_graphs import clip_size
from mmdeploy_ext.families.images import Options


class Decode(nn.Module):
    """Priors, box decoding and scores for all levels."""

    def __init__(self, head: nn.Module) -> None:
        """Keep the generator of the priors, and the facts; none of the head's layers is used."""
        super().__init__()
        self.facts, self.priors = facts_of(head), generator_of(head)

    def forward(
        self, *raw: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor | None]]:
        """Return per level boxes (B, A, 5), class scores (B, A, C) and score factors (B, A) or None.

        Boxes are x, y, width, height in pixels and angle in radians; their centres are not clipped. `raw` are
        the outputs of the network, in the order of `networks.raw_names`.
        """
        head, coder = self.facts.head, self.facts.coder
        count = len(raw) // len(head.outputs)
        boxes, scores, factors = [], [], []
        for level in range(count):
            maps = raw[level::count]
            outputs = zip(head.outputs, maps, strict=True)
            rows = {name: rows_of(tensor, columns) for (name, columns), tensor in outputs}
            priors = None  # of a head that refines boxes they are an output of the network
            if 'rois' not in rows:
                priors = self.priors.single_level_grid_priors(
                    maps[0].shape[-2:], level, dtype=maps[0].dtype, device=maps[0].device
                )
            boxes.append(coder.boxes(torch, priors, rows, level))
            scores.append(head.class_scores(torch, rows))
            factors.append(head.score_factors(torch, rows, coder))
        return boxes, scores, factors


class DecodeForm(nn.Module):
    """What the `decode` form adds to the network: raw outputs to boxes, scores, score factors."""

    def __init__(self, model: nn.Module, product: bool) -> None:
        """Choose with `product` whether scores are multiplied by the factor, or the factor is an output."""
        super().__init__()
        self.decode, self.product = Decode(last_head(model)), product

    def forward(self, *raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, A, 5), scores (B, A, C) and, if they are not multiplied in, factors (B, A).

        `raw` are the outputs of the network; heads without factors give none.
        """
        mlvl_boxes, mlvl_scores, mlvl_factors = self.decode(*raw)
        boxes, scores = torch.cat(mlvl_boxes, dim=1), torch.cat(mlvl_scores, dim=1)
        if mlvl_factors[0] is None:
            return boxes, scores
        factors = torch.cat(mlvl_factors, dim=1)
        return (boxes, scores * factors[..., None]) if self.product else (boxes, scores, factors)


class FullForm(nn.Module):
    """What the `full` form adds to the network: raw outputs to results."""

    def __init__(self, model: nn.Module, cap: int = 0) -> None:
        """Read the thresholds from the head's test_cfg.

        `cap` is the largest number of pairs of prior and class that enter the suppression; 0 lets all in.
        """
        super().__init__()
        self.decode = Decode(last_head(model))
        self.suppress = RotatedSuppression(self.decode.facts, cap)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, scale_factor: torch.Tensor, *raw: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return dets (B, n, 6), best first, labels (B, n), and with a cap candidates (B,).

        Columns of dets are x, y, width, height in pixels of the originals, angle in radians and score; rows
        that an image does not have are zero with label -1. Candidates are numbers of pairs of prior and class
        that pass the threshold, among the `nms_pre` best priors of each level. With `clip_border` centres are
        clipped to the contents of an image, 0..size - 1.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32 `w h w h`, input / original.
            raw: the outputs of the network, in the order of `networks.raw_names`.
        """
        levels = [self._best(*level) for level in zip(*self.decode(*raw), strict=True)]
        boxes, scores, factors = (
            None if parts[0] is None else torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
        )
        if self.decode.facts.clip_border:
            clip_hw = clip_size(image, img_shape)
            upper = torch.cat([clip_hw[:, 1:], clip_hw[:, :1]], dim=1)[:, None] - 1
            centres = torch.minimum(boxes[..., :2].clamp(min=0), upper)
            boxes = torch.cat([centres, boxes[..., 2:]], dim=2)
        boxes = torch.cat([boxes[..., :4] / scale_factor[:, None], boxes[..., 4:]], dim=2)
        return self.suppress(boxes, scores, factors)

    def _best(
        self, boxes: torch.Tensor, scores: torch.Tensor, factors: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the `nms_pre` priors of a level whose scores of any class are the best."""
        nms_pre = self.decode.facts.nms_pre
        if nms_pre <= 0:
            return boxes, scores, factors
        ranks = scores if factors is None else scores * factors[..., None]
        rows = ranks.amax(dim=2)
        _, rows = rows.topk(limit(nms_pre, rows.shape[1]), dim=1)
        row_factors = None if factors is None else factors.gather(1, rows)
        return gather_rows(boxes, rows), gather_rows(scores, rows), row_factors


def decode_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    """Return the names of the outputs of the `decode` form."""
    separate = facts_of(last_head(model)).head.factor and options.score_form == 'separate'
    return ('boxes', 'scores', 'factors') if separate else ('boxes', 'scores')
