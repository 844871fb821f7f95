"""From logits and relative boxes of queries to detections: the best pairs, without suppression.

Source of the algorithm: mmdet 2.28.2 `dense_heads/detr_head.py` (`_get_bboxes_single`).

Glossary: B batch, Q queries, C classes, n detections.
"""

import torch
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy

FULL_NAMES = ('dets', 'labels')


def max_per_img(head: nn.Module) -> int:
    """Return how many results a head gives."""
    return int(head.test_cfg.get('max_per_img', head.num_query))


def pairs(head: nn.Module) -> int:
    """Return how many results a head can give: queries, or pairs of query and class."""
    queries = getattr(head.transformer, 'two_stage_num_proposals', head.num_query)
    queries = queries if getattr(head, 'as_two_stage', False) else head.num_query
    return int(queries) * (int(head.num_classes) if head.loss_cls.use_sigmoid else 1)


def best_pairs(scores: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, classes and queries (B, n) of the best of scores (B, Q, C), in descending order."""
    classes = scores.shape[2]
    scores, index = scores.flatten(1).topk(most, 1)
    return scores, index % classes, torch.div(index, classes, rounding_mode='floor')


class FullForm(nn.Module):
    """What the `full` form adds to the network."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.most, self.sigmoid = max_per_img(head), bool(head.loss_cls.use_sigmoid)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        logits: torch.Tensor,
        boxes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dets (B, n, 5) and labels (B, n).

        Of logits (B, Q, C), or with a column more for the background, and boxes (B, Q, 4) cxcywh relative to
        the image, without its padding; for the other inputs see `dense.forms.FullForm`.
        """
        scores, labels, query = self._best(logits)
        content = torch.where(img_shape > 0, img_shape, hw(image).to(img_shape)[None])
        whole = content.flip(1).repeat(1, 2)[:, None]
        chosen = cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4)))
        placed = torch.minimum((chosen * whole).clamp(min=0), whole) / scale_factor[:, None]
        return tap('dets', torch.cat([placed, scores[..., None]], 2)), tap('labels', labels)

    def _best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scores, classes and queries (B, n) of the best results, in descending order."""
        if self.sigmoid:
            return best_pairs(logits.sigmoid(), self.most)
        every, kinds = logits.softmax(2)[..., :-1].max(2)
        scores, query = every.topk(self.most, 1)
        return scores, kinds.gather(1, query), query
