"""RT-DETR's loss: one-to-one matching, varifocal classification, L1 and generalised IoU.

Source: lyuwenyu/RT-DETR 068dfde, src/zoo/rtdetr/{rtdetr_criterion,matcher}.py.

Glossary: B images, C classes, Q queries, n objects of an image.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy, paired_iou

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Per image (queries, objects)."""
COST = dict(cls=2.0, bbox=5.0, giou=2.0)
LOSS = dict(cls=1.0, bbox=5.0, giou=2.0)
COST_ALPHA, LOSS_ALPHA, GAMMA, TINY = 0.25, 0.75, 2.0, 1e-8


@dataclasses.dataclass(frozen=True)
class Objects:
    """Ground truth of a batch."""

    boxes: Sequence[torch.Tensor]  # per image (n, 4) cxcywh in 0..1
    labels: Sequence[torch.Tensor]  # per image (n,) int64

    @property
    def count(self) -> int:
        """Objects of all images, at least 1."""
        return max(sum(map(len, self.labels)), 1)


class SetLoss:
    """Matches queries with objects and measures how far they are."""

    def __init__(self, train_cfg: Mapping[str, Mapping[str, float]]) -> None:
        """Read the weights of `cost` and `loss`: `cls`, `bbox`, `giou`; ConfigError: another key."""
        unknown = sorted(train_cfg.keys() - {'cost', 'loss'})
        self.cost = {**COST, **train_cfg.get('cost', {})}
        self.weight = {**LOSS, **train_cfg.get('loss', {})}
        unknown += sorted((self.cost.keys() | self.weight.keys()) - COST.keys())
        if unknown:
            raise ConfigError(
                f'model.train_cfg has {unknown}; expected cost and loss with {", ".join(COST)} each'
            )

    @torch.no_grad()
    def match(self, logits: torch.Tensor, boxes: torch.Tensor, objects: Objects) -> Pairs:
        """Return the cheapest one-to-one assignment per image.

        Of logits (B, Q, C) and boxes (B, Q, 4) cxcywh in 0..1.
        """
        pairs = []
        for scores, places, gt_boxes, labels in zip(
            logits.sigmoid(), boxes, objects.boxes, objects.labels, strict=True
        ):
            queries, numbers = linear_sum_assignment(
                self._costs(scores, places, gt_boxes, labels).cpu().numpy()
            )
            pairs.append(tuple(torch.as_tensor(index, device=boxes.device) for index in (queries, numbers)))
        return pairs

    def _costs(
        self, scores: torch.Tensor, places: torch.Tensor, gt_boxes: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return (Q, n)."""
        scores = scores[:, labels]
        miss = COST_ALPHA * (1 - scores) ** GAMMA * -(scores + TINY).log()
        hit = (1 - COST_ALPHA) * scores**GAMMA * -(1 - scores + TINY).log()
        _, giou = paired_iou(cxcywh_to_xyxy(places)[:, None], cxcywh_to_xyxy(gt_boxes)[None])
        distance = torch.cdist(places, gt_boxes, p=1)
        return self.cost['cls'] * (miss - hit) + self.cost['bbox'] * distance - self.cost['giou'] * giou

    def losses(
        self, logits: torch.Tensor, boxes: torch.Tensor, objects: Objects, pairs: Pairs, count: float
    ) -> dict[str, torch.Tensor]:
        """Return `loss_cls`, `loss_bbox`, `loss_giou`, weighted, per object; `count` is what is divided by.

        Of logits (B, Q, C) and boxes (B, Q, 4) cxcywh in 0..1; `pairs` say which query has to be which
        object, the others are background.
        """
        image = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(pairs)])
        query = torch.cat([queries for queries, _ in pairs])
        gt_boxes = torch.cat([rows[numbers] for rows, (_, numbers) in zip(objects.boxes, pairs, strict=True)])
        labels = torch.cat(
            [classes[numbers] for classes, (_, numbers) in zip(objects.labels, pairs, strict=True)]
        )
        places = boxes[image, query]
        iou, giou = paired_iou(cxcywh_to_xyxy(places), cxcywh_to_xyxy(gt_boxes))
        quality = torch.zeros_like(logits)
        quality[image, query, labels] = iou.detach().clamp(min=0).to(logits.dtype)
        matched = torch.zeros_like(logits, dtype=torch.bool)
        matched[image, query, labels] = True
        return dict(
            loss_cls=self.weight['cls'] * varifocal(logits, quality, matched) / count,
            loss_bbox=self.weight['bbox'] * (places - gt_boxes).abs().sum() / count,
            loss_giou=self.weight['giou'] * (1 - giou).sum() / count,
        )


def varifocal(logits: torch.Tensor, quality: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Return the sum over all (B, Q, C): the IoU is the target of matched pairs and their weight."""
    background = LOSS_ALPHA * logits.sigmoid().detach() ** GAMMA
    weight = torch.where(matched, quality, background)
    return F.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction='sum')
