"""Seeded weights of one-stage detectors of rotated boxes: the targets of the last layers of their heads.

The network is filled as mm2onnx fills detectors of mmdet. Glossary: B pictures, H, W of a picture in pixels.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mm2onnx_mmrotate.dense.networks import head_outputs
from mmdeploy_ext.seeded.dense import bound_logits
from mmdeploy_ext.seeded.layers import Target, outputs_of, rescale
from mmdeploy_ext.seeded.weights import HeadStep, fill_seeded, normalised_photograph

PLACING, REFINING = Target(0.0, 0.1), Target(0.0, 0.2)
"""Deltas of boxes that place samples of features, and of the head behind them. With 0.4 in both, rounding of
S2A-Net's features moves boxes of 2 pixels by 1e-3 (measured, R50 at 160x192): an IoU of 0.994."""
DELTAS, LOGITS = Target(0.0, 0.4), Target(-6.0, 1.3)
"""Deltas of boxes of the other detectors, and logits of 15 classes: about one score of a hundred passes the
threshold. With the -4.6 of mmdet's heads ten of a hundred do, of which a suppression of rotated boxes would
compare thousands with each other."""
TARGETS = {
    r'conv_angle': Target(0.0, 0.6),
    r'retina_angle_cls': Target(-4.6, 1.3),
    r'reppoints_pts_(init|refine)_out': Target(0.0, 0.8),
    r'conv_centerness': Target(0.5, 1.0),
    r'(retina|odm|conv)_cls|reppoints_cls_out': LOGITS,
}
"""Regular expression of the names of last layers -> target of their outputs, boxes before scores."""
DISTANCES = {True: Target(2.0, 0.7), False: Target(3.4, 0.5)}
"""Target of the distances of a head of points: by whether they are in strides, or logarithms of pixels."""
ANGLE_CLASSES = Target(-4.6, 1.3)
"""Target of the logits of classes of angles."""


def fill(model: nn.Module, cfg: Any, family: object, seed: int = 0) -> nn.Module:
    """Fill a newly built detector in place with seeded weights, set it to evaluation mode and return it.

    Its layers are scaled on generated pictures, which have the mean and deviation of a photograph after the
    step `Normalize` in the test pipeline of `cfg`, mmcv's config. `seed` is that of weights and pictures;
    factors and offsets that normalisations and `Scale` learn stay, see `fill_seeded`.
    """
    return fill_seeded(model, seed, *normalised_photograph(cfg), head_steps=_head_steps)


def _head_steps(
    model: nn.Module, pictures: torch.Tensor, exposed_pictures: torch.Tensor
) -> tuple[HeadStep, HeadStep]:
    """Return the step that runs the heads, and the step that rescales their last layers."""
    return functools.partial(head_outputs, model), functools.partial(_scale, model, exposed_pictures)


def _scale(model: nn.Module, exposed_pictures: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Rescale the last layers of all heads in place, head by head, given the features of each level."""
    features, exposed = list(features), list(model.extract_feat(exposed_pictures))
    if hasattr(model, 'odm_head'):
        inner_heads, last_head = [model.fam_head], model.odm_head
    else:
        *inner_heads, last_head = model.bbox_head, *getattr(model, 'refine_head', ())
    for head in (*inner_heads, last_head):
        deltas = DELTAS
        if inner_heads:
            deltas = REFINING if head is last_head else PLACING
        distances = DISTANCES[bool(getattr(head, 'norm_on_bbox', False))]
        targets = {r'conv_reg': distances, r'(retina|odm)_reg': deltas, **TARGETS}
        for names, target in targets.items():
            for name, layer in head.named_modules():
                if isinstance(layer, nn.Conv2d) and re.fullmatch(names, name):
                    is_csl = name == 'conv_angle' and hasattr(head, 'angle_coder')
                    mean, deviation = ANGLE_CLASSES if is_csl else target
                    rescale(layer, outputs_of(layer, lambda: head_outputs(model, features)), mean, deviation)
                    if target is LOGITS:
                        bound_logits(layer, outputs_of(layer, lambda: head_outputs(model, exposed)), mean)
