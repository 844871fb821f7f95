"""RT-DETR's training: one-to-one matching, losses, denoising queries, and a pass of all layers.

Denoising queries are noised ground truth that the decoder learns to undo, beside the matched queries.

Source: lyuwenyu/RT-DETR 068dfde, src/zoo/rtdetr/{rtdetr_criterion,matcher,denoising,rtdetr_decoder}.py.
Differs in: each process divides its losses by the number of its own objects, not by the mean of all of them.

Glossary: B images, C classes, D embedding, n objects of an image, G largest n, R repetitions, N = 2 G R
denoising queries, Q matched queries.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from mmdeploy_ext.compat.patches_vendored import mmdet_module
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy, paired_iou, xyxy_to_cxcywh
from mmdeploy_ext.models.rtdetr.decoder import RTDETRDecoder, Selection

inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Per image a pair of indices, of queries and of the objects assigned to them."""
Prediction = tuple[torch.Tensor, torch.Tensor]
"""Class logits (B, Q, C) and boxes (B, Q, 4) cxcywh in 0..1."""
COST = dict(cls=2.0, bbox=5.0, giou=2.0)
"""Weights of the matching's costs: of classes, L1 distance of boxes, and generalised IoU."""
LOSS = dict(cls=1.0, bbox=5.0, giou=2.0)
"""Weights of the losses."""
COST_ALPHA, LOSS_ALPHA, GAMMA, TINY = 0.25, 0.75, 2.0, 1e-8
"""Parameters of the focal cost and of the varifocal loss; what keeps logarithms finite."""


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
    """The matching of queries with objects, and the losses of matched queries."""

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
        """Return the cheapest one-to-one matching per image of logits (B, Q, C) and boxes (B, Q, 4).

        Boxes are cxcywh in 0..1.
        """
        from scipy.optimize import linear_sum_assignment  # takes half a second to import

        pairs = []
        images = zip(logits.sigmoid(), boxes, objects.boxes, objects.labels, strict=True)
        for scores, predicted, targets, labels in images:
            costs = self._costs(scores, predicted, targets, labels)
            indices = linear_sum_assignment(costs.cpu().numpy())
            pairs.append(tuple(torch.as_tensor(index, device=boxes.device) for index in indices))
        return pairs

    def _costs(
        self, scores: torch.Tensor, predicted: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the costs (Q, n) of scores (Q, C) and boxes (Q, 4) for objects (n, 4) with labels (n,)."""
        scores = scores[:, labels]
        miss = COST_ALPHA * (1 - scores) ** GAMMA * -(scores + TINY).log()
        hit = (1 - COST_ALPHA) * scores**GAMMA * -(1 - scores + TINY).log()
        _, giou = paired_iou(cxcywh_to_xyxy(predicted)[:, None], cxcywh_to_xyxy(targets)[None])
        distance = torch.cdist(predicted, targets, p=1)
        return self.cost['cls'] * (miss - hit) + self.cost['bbox'] * distance - self.cost['giou'] * giou

    def losses(
        self, logits: torch.Tensor, boxes: torch.Tensor, objects: Objects, pairs: Pairs, count: float
    ) -> dict[str, torch.Tensor]:
        """Return the losses `loss_cls`, `loss_bbox` and `loss_giou` by name, weighted, divided by `count`.

        Logits are (B, Q, C), boxes (B, Q, 4) cxcywh in 0..1; `pairs` assigns objects to queries, the other
        queries are background.
        """
        image = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(pairs)])
        query = torch.cat([queries for queries, _ in pairs])
        targets = torch.cat([rows[index] for rows, (_, index) in zip(objects.boxes, pairs, strict=True)])
        labels = torch.cat([rows[index] for rows, (_, index) in zip(objects.labels, pairs, strict=True)])
        predicted = boxes[image, query]
        iou, giou = paired_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(targets))
        quality = torch.zeros_like(logits)
        quality[image, query, labels] = iou.detach().clamp(min=0).to(logits.dtype)
        matched = torch.zeros_like(logits, dtype=torch.bool)
        matched[image, query, labels] = True
        return dict(
            loss_cls=self.weight['cls'] * varifocal(logits, quality, matched) / count,
            loss_bbox=self.weight['bbox'] * (predicted - targets).abs().sum() / count,
            loss_giou=self.weight['giou'] * (1 - giou).sum() / count,
        )


def varifocal(logits: torch.Tensor, quality: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Return the loss summed over (B, Q, C); the IoU is both target and weight of matched pairs.

    `quality` is the IoU of a matched query for the class of its object, else 0; `matched` is True there.
    """
    background = LOSS_ALPHA * logits.sigmoid().detach() ** GAMMA
    weight = torch.where(matched, quality, background)
    return F.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction='sum')


@dataclasses.dataclass(frozen=True)
class DenoisingQueries:
    """Denoising queries, which go before the matched ones."""

    target: torch.Tensor  # (B, N, D) embedding of labels, some of them wrong
    boxes_logit: torch.Tensor  # (B, N, 4) noised cxcywh before the sigmoid
    mask: torch.Tensor  # (N + Q, N + Q) bool, True where a row must not look at a column
    pairs: Pairs  # per image (queries, objects) of boxes to be undone
    repetitions: int  # R

    def __len__(self) -> int:
        return self.target.shape[1]


def denoising_queries(
    decoder: RTDETRDecoder, boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> DenoisingQueries | None:
    """Return the denoising queries of a batch; None if no image has an object, or the decoder has none.

    A repetition has G slightly noised boxes, which are to be undone, and G more strongly noised ones, which
    are background. Per image `boxes` are (n, 4) cxcywh in 0..1, `labels` (n,).

    Source: contrastive denoising of DINO.
    """
    max_objects = max(map(len, labels), default=0)
    if not max_objects or not decoder.num_denoising:
        return None
    repetitions = max(decoder.num_denoising // max_objects, 1)
    device, batch = boxes[0].device, len(boxes)
    query_labels = torch.full((batch, max_objects), decoder.num_classes, dtype=torch.int64, device=device)
    query_boxes = torch.zeros(batch, max_objects, 4, device=device)
    is_object = torch.zeros(batch, max_objects, dtype=torch.bool, device=device)
    for image, (boxes_of_image, labels_of_image) in enumerate(zip(boxes, labels, strict=True)):
        count = len(labels_of_image)
        query_labels[image, :count], query_boxes[image, :count] = labels_of_image, boxes_of_image
        is_object[image, :count] = True
    query_labels, is_object = (rows.repeat(1, 2 * repetitions) for rows in (query_labels, is_object))
    query_boxes = query_boxes.repeat(1, 2 * repetitions, 1)
    negative = (torch.arange(2 * max_objects * repetitions, device=device) // max_objects % 2).bool()
    drawn = torch.rand(query_labels.shape, device=device) < decoder.label_noise * 0.5
    other_labels = torch.randint_like(query_labels, 0, decoder.num_classes)
    query_labels = torch.where(drawn & is_object, other_labels, query_labels)
    # a corner moves by up to `box_noise` half sizes, one of a negative by one to two times that
    reach = query_boxes[..., 2:].repeat(1, 1, 2) * 0.5 * decoder.box_noise
    signs = torch.randint_like(query_boxes, 0, 2) * 2 - 1
    share = torch.rand_like(query_boxes) + negative[None, :, None].to(query_boxes.dtype)
    query_boxes = xyxy_to_cxcywh((cxcywh_to_xyxy(query_boxes) + signs * share * reach).clamp(0, 1))
    starts = 2 * max_objects * torch.arange(repetitions, device=device)
    pairs = []
    for labels_of_image in labels:
        objects = torch.arange(len(labels_of_image), device=device)
        pairs.append(((starts[:, None] + objects).flatten(), objects.repeat(repetitions)))
    return DenoisingQueries(
        decoder.denoising_class_embed(query_labels),
        inverse_sigmoid(query_boxes),
        attention_mask(2 * max_objects, repetitions, decoder.num_queries).to(device),
        pairs,
        repetitions,
    )


def attention_mask(group: int, repetitions: int, num_queries: int) -> torch.Tensor:
    """Return (N + Q, N + Q) bool, True where a row must not look at a column.

    Matched queries do not see denoising ones, which see them; repetitions do not see each other. A repetition
    has `group` queries.
    """
    owner = torch.arange(repetitions).repeat_interleave(group)
    owner = torch.cat([owner, torch.full((num_queries,), -1)])
    denoising = owner >= 0
    return denoising[None] & (owner[:, None] != owner[None])


def training_losses(
    decoder: RTDETRDecoder, features: Sequence[torch.Tensor], objects: Objects, loss: SetLoss
) -> dict[str, torch.Tensor]:
    """Return name -> loss, as mmdet's runners take them, of the encoder's maps (B, channels, h, w).

    Prefix `d0.` is of the first layer and so on except for the last, which has none, `enc.` of the encoder,
    `dn0.` of the denoising queries, if there are any, of the first layer and so on, here with the last.
    """
    maps = decoder.project(features)
    selection = decoder.select(maps)
    denoising = denoising_queries(decoder, objects.boxes, objects.labels)
    layers = run_layers(decoder, maps, selection, denoising)
    num_denoising = 0 if denoising is None else len(denoising)
    losses = {}
    for index, (logits, boxes) in enumerate(layers):
        prefix = '' if index == len(layers) - 1 else f'd{index}.'
        losses.update(_matched(prefix, (logits[:, num_denoising:], boxes[:, num_denoising:]), objects, loss))
        if denoising is not None:
            count = objects.count * denoising.repetitions
            parts = loss.losses(
                logits[:, :num_denoising], boxes[:, :num_denoising], objects, denoising.pairs, count
            )
            losses.update({f'dn{index}.{key}': value for key, value in parts.items()})
    encoder = selection.logits, selection.boxes_logit.sigmoid()
    return {**losses, **_matched('enc.', encoder, objects, loss)}


def _matched(prefix: str, prediction: Prediction, objects: Objects, loss: SetLoss) -> dict[str, torch.Tensor]:
    pairs = loss.match(*prediction, objects)
    parts = loss.losses(*prediction, objects, pairs, objects.count)
    return {prefix + key: value for key, value in parts.items()}


def run_layers(
    decoder: RTDETRDecoder,
    maps: Sequence[torch.Tensor],
    selection: Selection,
    denoising: DenoisingQueries | None = None,
) -> list[Prediction]:
    """Return the predictions of every layer, denoising queries first, if `denoising` is not None.

    Maps are (B, D, h, w), projected; they and `selection` are those of the decoder.

    Selected content and boxes do not pass gradients to the encoder; a box does to the layer before its own
    ("look forward twice" of DINO).
    """
    target, start, mask = selection.target.detach(), selection.boxes_logit.detach(), None
    if denoising is not None:
        target = torch.cat([denoising.target, target], 1)
        start = torch.cat([denoising.boxes_logit, start], 1)
        mask = denoising.mask
    fixed = attached = start.sigmoid()
    predictions = []
    heads = zip(decoder.decoder.layers, decoder.dec_bbox_head, decoder.dec_score_head, strict=True)
    for layer, box_head, score_head in heads:
        target = layer(target, decoder.query_pos_head(fixed), fixed, maps, mask)
        offset = box_head(target)
        predictions.append((score_head(target), (offset + inverse_sigmoid(attached)).sigmoid()))
        attached = (offset + inverse_sigmoid(fixed)).sigmoid()
        fixed = attached.detach()
    return predictions
