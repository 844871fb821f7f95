"""The seeded rule of queries with regions: boxes all over a picture, that stages move a little in turn.

A trained model begins with learned boxes; here they have many sizes and places, so that regions are pooled
from every level. The last layers are brought to their targets while the stages run, one after the other.
"""

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import nn

from mmdeploy_ext.families.query.regions import RegionsFullForm, RegionsNetwork
from mmdeploy_ext.synthetic.seeded_dense import CLASS_TARGET
from mmdeploy_ext.synthetic.seeded_layers import Target, bring
from mmdeploy_ext.synthetic.seeded_regions import BACKGROUND, SPARSER, TARGETS

BRANCH = 0.25
"""Weight of what a stage adds to queries. With as much as there is, six stages make rounding 600 times larger
and queries alike; with this 7 times."""
MOVE = Target(0.0, 0.15)
"""Deltas of a stage."""
SIDES = (0.08, 0.7)
"""Shortest and longest side of a learned box, relative to the picture."""


def _branch_ends(head: nn.Module) -> tuple[nn.Module, ...]:
    """Return the last layers of what a `DIIHead` adds to queries: attention, dynamic convolution, FFN."""
    return head.attention.attn.out_proj, head.instance_interactive_conv.fc_norm, head.ffn.layers[1]


def scale_stages(model: nn.Module, pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Draw learned boxes, run the stages, and bring their last layers to their targets, in place.

    Pictures are (B, 3, H, W), normalised; features those of each level.
    """
    draw, learned = torch.Generator().manual_seed(1), model.rpn_head
    low, high = map(math.log, SIDES)
    count = len(learned.init_proposal_bboxes.weight)
    sides = (low + (high - low) * torch.rand(count, 2, generator=draw)).exp()
    centres = 0.2 + 0.6 * torch.rand(count, 2, generator=draw)
    learned.init_proposal_bboxes.weight.copy_(torch.cat([centres, sides], 1))
    query = learned.init_proposal_features.weight
    query.copy_(torch.randn(query.shape, generator=draw))
    targets = {}
    for head in model.roi_head.bbox_head:
        for part in _branch_ends(head):
            part.weight.mul_(BRANCH)
        classes = [CLASS_TARGET] * head.num_classes
        if not head.loss_cls.use_sigmoid:
            classes = [TARGETS['fc_cls']] * head.num_classes
            classes += [Target(math.log(head.num_classes) + BACKGROUND, classes[0].deviation)]
        targets |= {head.fc_reg: [MOVE] * 4, head.fc_cls: classes}
    for head in model.roi_head.mask_head if model.roi_head.with_mask else ():
        targets[head.conv_logits] = [TARGETS['conv_logits']] * head.num_classes

    def hook(layer: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        channel = 1 if output.dim() == 4 else 2
        rows = output.movedim(channel, 0).flatten(1)
        bring(layer, rows, *torch.tensor(targets[layer]).unbind(1))
        return layer.forward(*given)

    size = torch.tensor([pictures.shape[2:]] * len(pictures)).to(pictures)
    with contextlib.ExitStack() as stack:
        for layer in targets:
            stack.enter_context(layer.register_forward_hook(hook))
        _, boxes, attended = RegionsNetwork(model).look(features, size)
        if model.roi_head.with_mask:
            form = RegionsFullForm(model)
            form.mask_head(form.regions.features(features, boxes[:, ::SPARSER]), attended[:, ::SPARSER])
