"""Denoising queries: noised ground truth that the decoder learns to undo, beside the matched queries.

Source: lyuwenyu/RT-DETR 068dfde, src/zoo/rtdetr/denoising.py (contrastive denoising of DINO).

Glossary: B images, G most objects of an image, R repetitions, N = 2 G R denoising queries, Q matched queries.
"""

import dataclasses
from collections.abc import Sequence

import torch

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from mmdeploy_ext.models.rtdetr.decoder import RTDETRDecoder

inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid


@dataclasses.dataclass(frozen=True)
class DenoisingQueries:
    """Queries that go before the matched ones."""

    target: torch.Tensor  # (B, N, D) embedded, partly wrong labels
    boxes_logit: torch.Tensor  # (B, N, 4) noised cxcywh before the sigmoid
    mask: torch.Tensor  # (N + Q, N + Q) bool, True where a row must not look at a column
    pairs: list[tuple[torch.Tensor, torch.Tensor]]  # per image (noised queries, objects that they become)
    repetitions: int  # R

    def __len__(self) -> int:
        return self.target.shape[1]


def denoising_queries(
    decoder: RTDETRDecoder, boxes: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> DenoisingQueries | None:
    """Make the queries of a batch; None if no image has an object, or the decoder uses no denoising.

    A repetition is G slightly noised boxes (to be undone) and G more strongly noised ones (background). Per
    image `boxes` are (n, 4) cxcywh in 0..1, `labels` (n,).
    """
    group = max(map(len, labels), default=0)
    if not group or not decoder.num_denoising:
        return None
    repetitions = max(decoder.num_denoising // group, 1)
    device, batch = boxes[0].device, len(boxes)
    classes = torch.full((batch, group), decoder.num_classes, dtype=torch.int64, device=device)
    places = torch.zeros(batch, group, 4, device=device)
    is_object = torch.zeros(batch, group, dtype=torch.bool, device=device)
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        classes[image, : len(image_labels)] = image_labels
        places[image, : len(image_labels)] = image_boxes
        is_object[image, : len(image_labels)] = True
    classes, is_object = classes.repeat(1, 2 * repetitions), is_object.repeat(1, 2 * repetitions)
    places = places.repeat(1, 2 * repetitions, 1)
    negative = (torch.arange(2 * group * repetitions, device=device) // group % 2).bool()
    is_changed = (torch.rand(classes.shape, device=device) < decoder.label_noise * 0.5) & is_object
    classes = torch.where(is_changed, torch.randint_like(classes, 0, decoder.num_classes), classes)
    places = _noisy_boxes(places, negative, decoder.box_noise)
    pairs = []
    for image_labels in labels:
        objects = torch.arange(len(image_labels), device=device)
        starts = 2 * group * torch.arange(repetitions, device=device)
        pairs.append(((starts[:, None] + objects).flatten(), objects.repeat(repetitions)))
    return DenoisingQueries(
        decoder.denoising_class_embed(classes),
        inverse_sigmoid(places),
        attention_mask(2 * group, repetitions, decoder.num_queries).to(device),
        pairs,
        repetitions,
    )


def _noisy_boxes(places: torch.Tensor, negative: torch.Tensor, scale: float) -> torch.Tensor:
    """Move every corner by up to `scale` half sizes; negatives by one to two times that."""
    reach = places[..., 2:].repeat(1, 1, 2) * 0.5 * scale
    signs = torch.randint_like(places, 0, 2) * 2 - 1
    part = torch.rand_like(places) + negative[None, :, None].to(places.dtype)
    corners = (cxcywh_to_xyxy(places) + signs * part * reach).clamp(0, 1)
    return xyxy_to_cxcywh(corners)


def attention_mask(group: int, repetitions: int, num_queries: int) -> torch.Tensor:
    """Return (N + Q, N + Q) bool: matched queries see no denoising ones, repetitions not each other.

    `group` is how many queries a repetition has.
    """
    owner = torch.arange(repetitions).repeat_interleave(group)
    owner = torch.cat([owner, torch.full((num_queries,), -1)])
    denoising = owner >= 0
    return denoising[None] & (owner[:, None] != owner[None])
