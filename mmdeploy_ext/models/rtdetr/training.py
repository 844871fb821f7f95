"""One training pass of the decoder: all layers, denoising queries and the encoder's own prediction.

Source: lyuwenyu/RT-DETR 068dfde, src/zoo/rtdetr/{rtdetr_decoder,rtdetr_criterion}.py.

Glossary: B batch, C classes, D embedding, N denoising queries, Q matched queries.
"""

from collections.abc import Sequence

import torch

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.models.rtdetr.decoder import RTDETRDecoder, Selection
from mmdeploy_ext.models.rtdetr.denoising import DenoisingQueries, denoising_queries
from mmdeploy_ext.models.rtdetr.losses import Objects, SetLoss

inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

Prediction = tuple[torch.Tensor, torch.Tensor]
"""Class logits (B, Q, C) and boxes (B, Q, 4) cxcywh in 0..1."""


def training_losses(
    decoder: RTDETRDecoder, features: Sequence[torch.Tensor], objects: Objects, loss: SetLoss
) -> dict[str, torch.Tensor]:
    """Return mmdet's losses; `d0.` are layers before the last, `enc.` the encoder, `dn0.` denoising."""
    maps = decoder.project(features)
    selection = decoder.select(maps)
    denoising = denoising_queries(decoder, objects.boxes, objects.labels)
    layers = run_layers(decoder, maps, selection, denoising)
    hidden = 0 if denoising is None else len(denoising)
    losses = {}
    for index, (logits, boxes) in enumerate(layers):
        prefix = '' if index == len(layers) - 1 else f'd{index}.'
        losses.update(_matched(prefix, (logits[:, hidden:], boxes[:, hidden:]), objects, loss))
        if denoising is not None:
            count = objects.count * denoising.repetitions
            parts = loss.losses(logits[:, :hidden], boxes[:, :hidden], objects, denoising.pairs, count)
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
    """Return what every layer predicts, denoising queries first.

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
