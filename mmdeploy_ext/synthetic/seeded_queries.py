"""The seeded rule of detectors of queries: attention that tells places apart, last layers to their targets.

Queries would have one answer all together where attention averages over a whole picture; so keys and queries
are larger than at the start of a training. The moves that layers give boxes in turn are small.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.synthetic.seeded_dense import BACKGROUND, CLASS_TARGET
from mmdeploy_ext.synthetic.seeded_layers import Target, bring, outputs_of

SCALES = (
    (r'level_embed\.weight', 0.3, False),
    (r'.*(level_embeds|(query_embedding|query_embed|query_feat|level_encoding)\.weight)', 1.0, False),
    (r'transformer_decoder.*ffns\.\d+\.layers\.1\.weight', 0.05, True),
    (r'transformer_decoder.*attentions\.0\.attn\.out_proj\.weight', 0.15, True),
    (r'transformer_decoder.*attentions\.1\.attn\.out_proj\.weight', 0.05, True),
    (r'transformer\.decoder\..*attentions\.1\.attn\.in_proj_weight', 2.0, True),
    (r'.*in_proj_weight', 1.2, True),
    (r'.*attentions\.0\.(attn\.out_proj|output_proj)\.weight', 0.3, True),
    (r'.*enc_output\.bias', 0.0, False),
    (r'.*sampling_offsets\.weight', 0.5, True),
    (r'.*sampling_offsets\.bias', 2.0, False),
    (r'.*(attention_weights|value_proj|output_proj|reference_points)\.weight', 1.0, True),
    (r'.*reg_branches\.\d+\.\d+\.weight', 1.0, True),
)
"""Parameters, the first match wins -> deviation, and whether of sums over the inputs of a layer. Nine layers
that each add as much as there is would leave all queries of Mask2Former alike."""
BLANK = (
    (r'transformer_decoder.*attentions\.1\.attn\.in_proj_weight', 2.0, True),
    (r'transformer_decoder.*attentions\.1\.attn\.out_proj\.weight', 1.0, True),
)
"""Before `SCALES` where queries of masks begin as zeros: what they look at alone tells them apart."""
RANKED = ((r'(query_embedding|transformer\.query_embed)\.weight', 0.0, False),)
"""Before `SCALES` where the n-th query gets the box of the n-th best token (DINO). In PyTorch alone rounding
of 2e-7 exchanges 4 to 8 ranks of 900; with queries that differ (deviation 0.003) 220 to 298 of its 300
results stay, with the ranks held all 300.
"""
MASKS = 4.0
"""Deviation of mask logits."""
SURE, SMALL = 3.0, 6.0
"""Where masks become panoptic maps: how much more the logits of classes differ, since a segment needs a score
of 0.8, and how much lower those of masks are, since a segment has to keep 0.8 of its mask."""
MOVE = 0.2
"""Of boxes between layers, as logits."""
PLACE, SIZE = Target(0.0, 0.8), Target(-1.5, 0.6)
"""Centres and sides of boxes as logits, where no reference point has them."""
SOFTMAX = Target(0.0, 2.0)
"""Class logits beside a background."""
VARIED, CONSTANT = 48, 0.05
"""So many features of a coordinate of a proposal differ inside a picture; the share of the others."""
PREFERENCE = 6.0
"""Of tokens that can be proposals, as a logit."""
PICTURES = slice(None, None, 2)
"""Of those that the statistics are taken from: noise and a scene."""


def is_query(model: nn.Module) -> bool:
    """Return whether the head of a detector is one of queries."""
    from mmdeploy_ext.compat.older_mmdet import mmdet_module

    known = mmdet_module('mmdet.models.dense_heads')
    heads = (getattr(model, key, None) for key in ('query_head', 'bbox_head', 'panoptic_head'))
    return any(isinstance(head, known.DETRHead | known.MaskFormerHead) for head in heads)


def is_regional(model: nn.Module) -> bool:
    """Return whether the queries of a detector have regions of their own."""
    from mmdeploy_ext.compat.older_mmdet import mmdet_module

    head = mmdet_module('mmdet.models.dense_heads').EmbeddingRPNHead
    return isinstance(getattr(model, 'rpn_head', None), head)


def scale_queries(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Fill a head of queries and bring its last layers to their targets, in place.

    Pictures are (B, 3, H, W), normalised; features those of each level.
    """
    heads = (getattr(model, key, None) for key in ('query_head', 'bbox_head', 'panoptic_head'))
    head, some = next(filter(None, heads)), pictures[PICTURES]
    _fill(head)
    size = tuple(pictures.shape[2:])
    metas = [dict(batch_input_shape=size, img_shape=(*size, 3))] * len(some)
    maps = [one[PICTURES] for one in features]

    def run() -> Any:
        return head(maps, metas)

    if hasattr(head, 'mask_embed'):
        feature = head.pixel_decoder.mask_feature
        bring(feature, outputs_of(feature, run), 0.0, 1.0)
        fused = bool((head.test_cfg or {}).get('panoptic_on', True))
        _to_target(head.cls_embed, run, _beside_background(head, SURE if fused else 1.0))
        last = head.mask_embed[-1]
        _to_target(last, run, [Target(0.0, 1.0)] * last.out_features)
        share = MASKS / torch.cat([one.flatten() for one in run()[1]]).std()
        last.weight.mul_(share)
        last.bias.mul_(share)
        if fused:
            _make_smaller(feature, last)
        return
    if hasattr(head, 'input_proj'):
        bring(head.input_proj, outputs_of(head.input_proj, lambda: head.input_proj(maps[-1])), 0.0, 1.0)
    deformable = hasattr(head, 'reg_branches')
    if deformable and head.as_two_stage:
        _to_target(head.cls_branches[-1], run, [CLASS_TARGET] * head.num_classes)
        _prefer_tokens(head.cls_branches[-1], run, head.num_classes if _ranked(head) else 1)
        _to_target(head.reg_branches[-1][-1], run, [Target(0.0, MOVE)] * 4)
    known = 4 if deformable and head.as_two_stage else 2
    boxes = [Target(0.0, MOVE)] * known if deformable else [PLACE] * 2
    boxes += [SIZE] * (4 - len(boxes))
    if deformable and head.with_box_refine and known < 4:
        _to_target(head.reg_branches[0][-1], run, boxes)
        boxes = [Target(0.0, MOVE)] * 4
    last = head.transformer.decoder.num_layers - 1
    _to_target(head.reg_branches[last][-1] if deformable else head.fc_reg, run, boxes)
    classes = [CLASS_TARGET] * head.num_classes
    if head.cls_out_channels > head.num_classes:
        classes = _beside_background(head)
    _to_target(head.cls_branches[last] if deformable else head.fc_cls, run, classes)


def _beside_background(head: nn.Module, factor: float = 1.0) -> list[Target]:
    deviation = factor * SOFTMAX.deviation
    background = Target(math.log(head.num_classes) + BACKGROUND, deviation)
    return [Target(SOFTMAX.mean, deviation)] * head.num_classes + [background]


def _make_smaller(features: nn.Module, last: nn.Module) -> None:
    """Let one feature be 1 everywhere, and masks take less of a picture by it."""
    features.weight[0], features.bias[0] = 0.0, 1.0
    last.weight[0], last.bias[0] = 0.0, -SMALL


def _fill(head: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    blank = hasattr(head, 'mask_embed') and not hasattr(head, 'query_feat')
    ranked = _ranked(head)
    for name, parameter in head.named_parameters():
        for pattern, deviation, summed in (*BLANK * blank, *RANKED * ranked, *SCALES):
            if re.fullmatch(pattern, name):
                scale = deviation / parameter[0].numel() ** 0.5 if summed else deviation
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * scale)
                break
    for branch in getattr(head, 'reg_branches', ()):
        branch[-1].weight.mul_(MOVE)
    if hasattr(getattr(head, 'transformer', None), 'pos_trans'):
        head.transformer.pos_trans.weight.unflatten(1, (4, -1))[:, :, VARIED:].mul_(CONSTANT)


def _ranked(head: nn.Module) -> bool:
    """Return whether tokens are judged by their best class, and queries follow the ranks of tokens."""
    return hasattr(getattr(getattr(head, 'transformer', None), 'decoder', None), 'ref_point_head')


def _prefer_tokens(layer: nn.Module, run: Callable[[], Any], classes: int) -> None:
    """Raise classes of tokens that can be proposals over those of the others, whose rows are zero."""
    kept: list[torch.Tensor] = []
    with layer.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0].flatten(0, -2))):
        run()
    mean = torch.cat(kept).mean(0)
    layer.weight[:classes] += PREFERENCE * mean / mean.square().sum()
    layer.bias[:classes] -= PREFERENCE


def _to_target(layer: nn.Module, run: Callable[[], Any], targets: Sequence[Target]) -> None:
    """Bring the columns of what a linear layer gives to their targets."""
    bring(layer, outputs_of(layer, run), *torch.tensor(targets).unbind(1))
