"""The seeded rule of detectors with queries.

Glossary: B pictures of H x W pixels.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded.dense import BACKGROUND, CLASS_TARGET
from dev.seeded.layers import Target, outputs_of, rescale, targets_of
from mmdeploy_ext.base.config import replaced_entry

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
"""Name of a parameter (the first match wins), deviation, and whether it is a deviation of sums over inputs.
"""
ZERO_QUERY_SCALES = (
    (r'transformer_decoder.*attentions\.1\.attn\.in_proj_weight', 2.0, True),
    (r'transformer_decoder.*attentions\.1\.attn\.out_proj\.weight', 1.0, True),
)
"""Before `SCALES` if queries of masks begin as zeros."""
RANKED_SCALES = ((r'(query_embedding|transformer\.query_embed)\.weight', 0.0, False),)
"""Before `SCALES` if the n-th query gets the box of the n-th best token (DINO)."""
MASK_DEVIATION = 4.0
"""Deviation of mask logits."""
PANOPTIC_CLASS_FACTOR, PANOPTIC_MASK_SHIFT = 3.0, 11.0
"""For panoptic maps: factor of class logits' deviation (a segment needs a score of 0.8), and reduction of
mask logits (it has to keep 0.8 of its mask).
"""
MOVE_DEVIATION = 0.2
"""Deviation of box moves between layers, as logits."""
CENTRE_TARGET, SIZE_TARGET = Target(0.0, 0.8), Target(-1.5, 0.6)
"""Centres and sides as logits, without a reference point."""
SOFTMAX_TARGET = Target(0.0, 2.0)
"""Class logits beside a background."""
VARYING_FEATURES, CONSTANT_SHARE = 48, 0.05
"""Varying features of a proposal's coordinate, and the weight of the others."""
TOKEN_PREFERENCE = 6.0
"""Logit by which possible proposals are raised."""
PICTURES = slice(None, None, 2)
"""Calibration pictures here: a noise picture and a scene."""
REGION_BRANCH_SCALE = 0.25
"""Scale of the branches from regions to queries."""
REGION_MOVE_TARGET = Target(0.0, 0.15)
"""Deltas of a stage with regions."""
REGION_SIDES = (0.08, 0.7)
"""Shortest and longest side of a learned box, relative to the picture."""
HEADS = ('query_head', 'bbox_head', 'panoptic_head')
"""Attributes with a head of queries."""


def is_query(model: nn.Module) -> bool:
    """Whether a detector has a head of queries (DETR, masks)."""
    from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

    mmdet_heads = mmdet_module('mmdet.models.dense_heads')
    heads = (getattr(model, name, None) for name in HEADS)
    return any(isinstance(head, mmdet_heads.DETRHead | mmdet_heads.MaskFormerHead) for head in heads)


def is_regional(model: nn.Module) -> bool:
    """Whether the queries have regions and learned boxes, as in Sparse R-CNN."""
    from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

    head = mmdet_module('mmdet.models.dense_heads').EmbeddingRPNHead
    return isinstance(getattr(model, 'rpn_head', None), head)


def scale_queries(
    model: nn.Module,
    pictures: torch.Tensor,
    exposed_pictures: torch.Tensor,
    features: Sequence[torch.Tensor],
) -> None:
    """Draw the parameters of a head of queries and rescale its last layers, in place.

    `pictures` (B, 3, H, W) give the size; `exposed_pictures` are dark and bright ones, for panoptic maps;
    `features` of each level (B, C, h, w).
    """
    head = next(filter(None, (getattr(model, name, None) for name in HEADS)))
    size = tuple(pictures.shape[2:])
    maps = [level[PICTURES] for level in features]
    if _is_panoptic(head):
        exposed = model.extract_feat(exposed_pictures)
        maps = [torch.cat([level, exposed_level]) for level, exposed_level in zip(maps, exposed, strict=True)]
    metas = [dict(batch_input_shape=size, img_shape=(*size, 3))] * len(maps[0])

    def run() -> Any:
        return head(maps, metas)

    _draw_parameters(head)
    if hasattr(head, 'mask_embed'):
        scale = _scale_panoptic_head if _is_panoptic(head) else _scale_mask_head
        scale(head, run)
        return
    if hasattr(head, 'input_proj'):
        outputs = outputs_of(head.input_proj, lambda: head.input_proj(maps[-1]))
        rescale(head.input_proj, outputs, 0.0, 1.0)
    deformable = hasattr(head, 'reg_branches')
    two_stage = deformable and head.as_two_stage
    move = Target(0.0, MOVE_DEVIATION)
    if two_stage:
        _rescale_linear(head.cls_branches[-1], run, [CLASS_TARGET] * head.num_classes)
        _raise_tokens(head.cls_branches[-1], run, head.num_classes if _has_ranked_queries(head) else 1)
        _rescale_linear(head.reg_branches[-1][-1], run, [move] * 4)
    boxes = [CENTRE_TARGET, CENTRE_TARGET, SIZE_TARGET, SIZE_TARGET]
    if two_stage:  # proposals are boxes
        boxes = [move] * 4
    elif deformable:  # reference points have only centres
        boxes = [move, move, SIZE_TARGET, SIZE_TARGET]
        if head.with_box_refine:
            _rescale_linear(head.reg_branches[0][-1], run, boxes)
            boxes = [move] * 4
    last = head.transformer.decoder.num_layers - 1
    _rescale_linear(head.reg_branches[last][-1] if deformable else head.fc_reg, run, boxes)
    classes = [CLASS_TARGET] * head.num_classes
    if head.cls_out_channels > head.num_classes:
        classes = _classes_with_background(head)
    _rescale_linear(head.cls_branches[last] if deformable else head.fc_cls, run, classes)


def _is_panoptic(head: nn.Module) -> bool:
    return hasattr(head, 'mask_embed') and bool((head.test_cfg or {}).get('panoptic_on', True))


def _scale_mask_head(head: nn.Module, run: Callable[[], Any]) -> None:
    feature_layer, embed_layer = head.pixel_decoder.mask_feature, head.mask_embed[-1]
    rescale(feature_layer, outputs_of(feature_layer, run), 0.0, 1.0)
    with _computed_once(head.pixel_decoder):
        _rescale_linear(head.cls_embed, run, _classes_with_background(head))
        _rescale_linear(embed_layer, run, [Target(0.0, 1.0)] * embed_layer.out_features)
        gain = MASK_DEVIATION / torch.cat([logits.flatten() for logits in run()[1]]).std()
    embed_layer.weight.mul_(gain)
    embed_layer.bias.mul_(gain)


def _scale_panoptic_head(head: nn.Module, run: Callable[[], Any]) -> None:
    feature_layer, embed_layer = head.pixel_decoder.mask_feature, head.mask_embed[-1]
    rescale(feature_layer, outputs_of(feature_layer, run), 0.0, 1.0)
    with _computed_once(head.pixel_decoder):
        _ignore_picture(head.mask_embed[0], run)
        rescale(embed_layer, _last_queries(embed_layer, run, outputs=True).flatten(0, 1).T, 0.0, 1.0)
        gain = MASK_DEVIATION / run()[1][-1].std()
    embed_layer.weight.mul_(gain)
    embed_layer.bias.mul_(gain)
    # one feature is 1 everywhere, and every mask gets the shift by it
    feature_layer.weight[0], feature_layer.bias[0] = 0.0, 1.0
    embed_layer.weight[0], embed_layer.bias[0] = 0.0, -PANOPTIC_MASK_SHIFT
    with _computed_once(head.pixel_decoder):
        _ignore_picture(head.cls_embed, run)
        logits = _last_queries(head.cls_embed, run, outputs=True).flatten(0, 1).T
    rescale(head.cls_embed, logits, *targets_of(_classes_with_background(head, PANOPTIC_CLASS_FACTOR)))


@contextlib.contextmanager
def _computed_once(layer: nn.Module) -> Iterator[None]:
    forward, outputs = layer.forward, []

    def once(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(forward(*args, **kwargs))
        return outputs[0]

    with replaced_entry(vars(layer), 'forward', once):
        yield


def _last_queries(layer: nn.Module, run: Callable[[], Any], outputs: bool = False) -> torch.Tensor:
    calls: list[torch.Tensor] = []
    with layer.register_forward_hook(lambda _, args, output: calls.append(output if outputs else args[0])):
        run()
    return calls[-1] if calls[-1].dim() == 3 else calls[-1][-1]  # MaskFormer runs it once for all layers


def _ignore_picture(layer: nn.Module, run: Callable[[], Any]) -> None:
    means = _last_queries(layer, run).mean(1)
    directions = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[: len(means) - 1]
    layer.weight.sub_(layer.weight @ directions.T @ directions)


def _classes_with_background(head: nn.Module, factor: float = 1.0) -> list[Target]:
    deviation = factor * SOFTMAX_TARGET.deviation
    background = Target(math.log(head.num_classes) + BACKGROUND, deviation)
    return [Target(SOFTMAX_TARGET.mean, deviation)] * head.num_classes + [background]


def _draw_parameters(head: nn.Module) -> None:
    generator, scales = torch.Generator().manual_seed(1), SCALES
    if _has_ranked_queries(head):
        scales = (*RANKED_SCALES, *scales)
    if hasattr(head, 'mask_embed') and not hasattr(head, 'query_feat'):
        scales = (*ZERO_QUERY_SCALES, *scales)
    for name, parameter in head.named_parameters():
        for pattern, deviation, is_of_sums in scales:
            if re.fullmatch(pattern, name):
                scale = deviation / parameter[0].numel() ** 0.5 if is_of_sums else deviation
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
                break
    for branch in getattr(head, 'reg_branches', ()):
        branch[-1].weight.mul_(MOVE_DEVIATION)
    if hasattr(getattr(head, 'transformer', None), 'pos_trans'):
        coordinates = head.transformer.pos_trans.weight.unflatten(1, (4, -1))
        coordinates[:, :, VARYING_FEATURES:].mul_(CONSTANT_SHARE)


def _has_ranked_queries(head: nn.Module) -> bool:
    return hasattr(getattr(getattr(head, 'transformer', None), 'decoder', None), 'ref_point_head')


def _raise_tokens(layer: nn.Module, run: Callable[[], Any], num_classes: int) -> None:
    inputs: list[torch.Tensor] = []
    with layer.register_forward_hook(lambda module, args, output: inputs.append(args[0].flatten(0, -2))):
        run()
    mean = torch.cat(inputs).mean(0)
    layer.weight[:num_classes] += TOKEN_PREFERENCE * mean / mean.square().sum()
    layer.bias[:num_classes] -= TOKEN_PREFERENCE


def _rescale_linear(layer: nn.Module, run: Callable[[], Any], targets: Sequence[Target]) -> None:
    rescale(layer, outputs_of(layer, run), *targets_of(targets))


def scale_region_queries(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Draw the learned boxes and features of queries with regions, and rescale their last layers, in place.

    `pictures` (B, 3, H, W) give the size; `features` of each level (B, C, h, w).
    """
    from dev.seeded.regions import TARGETS

    generator, learned = torch.Generator().manual_seed(1), model.rpn_head
    low, high = map(math.log, REGION_SIDES)
    count = len(learned.init_proposal_bboxes.weight)
    sides = (low + (high - low) * torch.rand(count, 2, generator=generator)).exp()
    centres = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
    learned.init_proposal_bboxes.weight.copy_(torch.cat([centres, sides], 1))
    queries = learned.init_proposal_features.weight
    queries.copy_(torch.randn(queries.shape, generator=generator))
    targets: dict[nn.Module, list[Target]] = {}
    for head in model.roi_head.bbox_head:
        # the last layers of the branches that a `DIIHead` adds to queries
        for layer in (
            head.attention.attn.out_proj, head.instance_interactive_conv.fc_norm, head.ffn.layers[1]
        ):  # fmt: skip
            layer.weight.mul_(REGION_BRANCH_SCALE)
        classes = [CLASS_TARGET] * head.num_classes
        if not head.loss_cls.use_sigmoid:
            classes = [TARGETS['fc_cls']] * head.num_classes
            classes += [Target(math.log(head.num_classes) + BACKGROUND, classes[0].deviation)]
        targets |= {head.fc_reg: [REGION_MOVE_TARGET] * 4, head.fc_cls: classes}
    for head in model.roi_head.mask_head if model.roi_head.with_mask else ():
        targets[head.conv_logits] = [TARGETS['conv_logits']] * head.num_classes

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        channel_axis = 1 if output.dim() == 4 else -1
        rescale(layer, output.movedim(channel_axis, 0).flatten(1), *targets_of(targets[layer]))
        return layer.forward(*inputs)

    size = (*pictures.shape[2:], 3)
    metas = [dict(img_shape=size, ori_shape=size, scale_factor=np.ones(4, np.float32)) for _ in pictures]
    with contextlib.ExitStack() as stack:
        for layer in targets:
            stack.enter_context(layer.register_forward_hook(hook))
        boxes, queries, sizes = learned.simple_test_rpn(features, metas)
        model.roi_head.simple_test(features, boxes, queries, metas, sizes)
