"""The seeded rule of one-stage detectors: what the last layers of any head of mmdet are brought to.

No table of configs: a head is known by the names that mmdet gives its last layers, and by how it reads them.
Class logits spread so that a few per cent of the scores pass the threshold, boxes differ between
priors by amounts that stay inside the picture, quality maps spread around their middle.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.building import build_without_weights
from mmdeploy_ext.synthetic.seeded_layers import Numbers, Target, bring, outputs_of


class Calibration(NamedTuple):
    """What the statistics of a network are taken from.

    Attributes:
        pictures: how many of noise. Two alone make those of deep layers of a YOLOX off by half on others.
        scenes: how many of the generated data set; without them a YOLOX finds nothing in `demo/toy.jpg`.
        exposures: whether a dark and a bright scene belong to them. What passes the statistics unhindered, a
            picture without normalisation or SiLU, brings scores of both to exactly 1, where none is the best.
        shift: of the normalised values of the neck. Around 0 every ReLU of NAS-FPN's 7 stages bends: float32
            is 9.2e-5 of scale off float64.
        residual: scale of the last normalisation of every residual block. With 1.0 the network amplifies
            rounding: PyTorch's own float32 is up to 4e-5 of scale off float64 on R50 at 608x608, and two
            engines' errors add up to the bar of 1e-4; with 0.25 it is 5e-6 there and 2e-5 on R101.
        size: height and width, pixels.
    """

    pictures: int = 2
    scenes: int = 2
    exposures: bool = False
    residual: float = 0.1
    shift: float = 1.0
    size: tuple[int, int] = (320, 416)


ATSS_CALIBRATION = Calibration(scenes=0, residual=0.25, shift=0.0)
SIZES = {'FPG': (384, 512), 'NASFPN': (512, 640), 'SSDNeck': (768, 896)}
"""Necks whose levels fit each other only where both sides are multiples of the largest stride; necks whose
coarse levels are all border, or a single cell, in a smaller picture: its statistics put logits of 30 into a
larger one."""

EXPOSED = ('CSPDarknet', 'CSPNeXt', 'EfficientNet', 'HourglassNet')
"""Backbones whose outputs grow with the light of a picture."""

ATSS_TARGETS = dict(atss_cls=Target(-4.6, 1.3), atss_reg=Target(0.0, 0.4), atss_centerness=Target(0.5, 1.0))
"""ATSSHead keeps the first rule, whose channels are not centred: published figures rest on its weights."""

LAYERS = {
    'box': r'(atss|conv|gfl|retina|rpn|tood|vfnet)_reg|vfnet_reg_refine|bbox_pred|retina_bbox_(cls|reg)|'
    r'conv_shape|reppoints_pts_(init|refine)_out|multi_level_conv_reg\.\d+|reg_convs\.\d+\.\d+|'
    r'(wh|offset)_head\.2|reg_offset_module\.2|rtm_reg\.\d+',
    'quality': r'(atss|conv)_centerness|atss_iou|object_pred|conv_loc|multi_level_conv_obj\.\d+|'
    r'cls_prob_module\.2|rtm_obj\.\d+',
    'class': r'(atss|conv|gfl|retina|rpn|tood|vfnet)_cls|cls_score|reppoints_cls_out|'
    r'multi_level_conv_cls\.\d+|cls_convs\.\d+\.\d+|heatmap_head\.2|rtm_cls\.\d+',
    'mixed': r'convs_pred\.\d+',
}
"""Role -> names of last layers. Mixed are those of YOLOv3: boxes, objectness and classes of each prior are
channels of one layer."""

CLASS_TARGET = Target(-4.6, 1.3)
QUALITY_TARGET = Target(0.5, 1.0)
OBJECTNESS_TARGET = Target(-4.0, 1.3)
YOLOX_OBJECTNESS = Target(-2.0, 1.3)
DELTA_TARGET = Target(0.0, 0.4)
SMALL_TARGET = Target(0.0, 0.2)
"""Of deltas whose coder has no standard deviations, and whose boxes place samples."""
GROWTH_TARGET = Target(0.8, 1.0)
"""The best anchors are of the finest level, which has the most: they grow, for regions of all levels."""
BACKGROUND_BIAS = 6.0
"""Of the last column of a softmax, beside class logits around 0: exp(6) weighs as much as 170 of them."""
BACKGROUND = 1.5
"""How much more than all classes together the background weighs, as a logarithm."""

COEFFICIENTS = 0.5
"""Deviation before tanh. With prototypes of 1, logits of masks of 32 prototypes have one of about 1.5."""
HIGHEST = 6.0
"""Of class logits. From about 12 on, sigmoid has no numbers in float32 to tell what is the better one."""


BOXES_OF_HEADS = {
    'FSAFHead': {'retina_reg': Target(0.5, 0.25)},
    'VFNetHead': {'vfnet_reg': Target(-1.0, 0.4), 'vfnet_reg_refine': Target(0.0, 0.2)},
    'GFLHead': {'gfl_reg': Target(0.0, 2.0)},
    'SABLRetinaHead': {'retina_bbox_cls': Target(0.0, 2.0)},
    'YOLOXHead': {'.*': Target(0.8, 0.5)},
    'CenterNetHead': {'wh_head.*': Target(8.0, 2.5), 'offset_head.*': Target(0.5, 0.2)},
    'AutoAssignHead': {'conv_reg': Target(2.0, 0.7)},
}
"""Class of a head (or one that it is derived from) -> layers whose outputs are no deltas of anchors."""


def calibration_of(model: nn.Module) -> Calibration:
    """Return what the statistics of a detector are taken from."""
    if _first_rule(getattr(model, 'bbox_head', None)):
        return ATSS_CALIBRATION
    sizes = [SIZES[kind] for kind in (type(part).__name__ for part in model.modules()) if kind in SIZES]
    exposures = any(type(part).__name__ in EXPOSED for part in model.modules())
    return Calibration(exposures=exposures, **({'size': sizes[0]} if sizes else {}))


def _first_rule(head: nn.Module | None) -> bool:
    return type(head).__name__ == 'ATSSHead'


def scale_outputs(
    head: nn.Module,
    features: Sequence[torch.Tensor],
    others: Callable[[], Sequence[torch.Tensor]] | None = None,
    run: Callable[[], Any] | None = None,
) -> None:
    """Bring the outputs of the last layers to their targets, in place.

    Boxes come first: deformable layers of other branches take their offsets from them. Features are of each
    level, (B, C, H, W); `others` returns the same of dark and bright pictures, where class logits are to be
    bounded; `run` runs the head, where it is not called alone.
    """
    run = run or (lambda: head(for_head(head, features)))
    if _first_rule(head):
        for name, target in ATSS_TARGETS.items():
            layer = getattr(head, name)
            layer.weight.mul_(target.deviation / outputs_of(layer, run).std())
            layer.bias.fill_(target.mean)
        return
    exposed, layers = others and others(), list(_last_layers(head))
    for role in LAYERS:
        for name in (name for found, name in layers if found == role):
            layer = head.get_submodule(name)
            outputs = outputs_of(layer, run)
            mean, deviation = _targets(head, name, role, len(outputs))
            bring(layer, outputs, mean, deviation)
            if role == 'class' and exposed and not _softmax(head):
                _bound(layer, outputs_of(layer, lambda: head(for_head(head, exposed))), mean)


def _last_layers(head: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            yield from ((role, name) for role, names in LAYERS.items() if re.fullmatch(names, name))


def for_head(head: nn.Module, features: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the features that a head takes at once: those of guided anchors take one image."""
    masked = any(type(module).__name__ == 'MaskedConv2d' for module in head.modules())
    return [one[:1] for one in features] if masked else features


def _bound(layer: nn.Module, logits: torch.Tensor, mean: Numbers) -> None:
    """Draw logits towards their mean until none is over `HIGHEST`."""
    share = ((HIGHEST - mean) / (logits.amax(1) - mean).clamp(min=1e-6)).min().clamp(max=1.0)
    if share < 1:
        layer.weight.mul_(share)
        layer.bias.copy_(mean - share * (mean - layer.bias))


def _targets(head: nn.Module, name: str, role: str, channels: int) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation of each channel of a layer."""
    if role == 'mixed':
        one = [DELTA_TARGET] * 4 + [OBJECTNESS_TARGET] + [CLASS_TARGET] * (head.num_attrib - 5)
        return torch.tensor(one * (channels // len(one))).unbind(1)
    if name == 'rpn_reg':
        one = [DELTA_TARGET] * 2 + [GROWTH_TARGET] * 2
        return torch.tensor(one * (channels // len(one))).unbind(1)
    target = {'box': _box_target, 'quality': _quality_target, 'class': _class_target}[role](head, name)
    if role == 'class' and _softmax(head):
        mean = torch.tensor([target.mean] * head.num_classes + [BACKGROUND_BIAS])
        return mean.repeat(channels // len(mean)), target.deviation
    return target


def _softmax(head: nn.Module) -> bool:
    return getattr(head, 'cls_out_channels', None) == head.num_classes + 1


def _kinds(head: nn.Module) -> list[str]:
    return [kind.__name__ for kind in type(head).__mro__]


def _class_target(head: nn.Module, name: str) -> Target:
    if _softmax(head):
        return Target(0.0, CLASS_TARGET.deviation)
    if {'RPNHead', 'GARPNHead'} & set(_kinds(head)):
        return Target(-1.0, 1.5)
    if {'PAAHead', 'TOODHead'} & set(_kinds(head)):
        return Target(-6.5, CLASS_TARGET.deviation)  # its scores are roots of a product with the quality
    return CLASS_TARGET


def _quality_target(head: nn.Module, name: str) -> Target:
    if name == 'conv_loc':
        return CLASS_TARGET  # guided anchors are where it is over 0.01: at half of the cells
    return YOLOX_OBJECTNESS if name.startswith('multi_level_conv_obj') else QUALITY_TARGET


def _box_target(head: nn.Module, name: str) -> Target:
    if name.startswith('reg_offset_module'):
        return DELTA_TARGET  # where TOOD samples its boxes, in cells
    for kind in _kinds(head):
        for pattern, target in BOXES_OF_HEADS.get(kind, {}).items():
            if re.fullmatch(pattern, name):
                return target
    if 'RepPointsHead' in _kinds(head):
        return SMALL_TARGET if head.use_grid_points else Target(0.0, 0.8)
    if 'TOODHead' in _kinds(head):
        return Target(0.7, 0.4) if head.anchor_type == 'anchor_free' else DELTA_TARGET
    if 'RTMDetSepBNHead' in _kinds(head):
        return Target(0.7, 0.4) if head.exp_on_reg else Target(2.0, 0.7)
    if 'FCOSHead' in _kinds(head):
        return Target(2.0, 0.7) if head.norm_on_bbox else Target(3.4, 0.5)
    return DELTA_TARGET


def scale_prototypes(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Bring the last layers of prototypes and coefficients to their deviations, in place; none is fine."""
    protonet = getattr(getattr(model, 'mask_head', None), 'protonet', None)
    if protonet is None:
        return
    last = [layer for layer in protonet if isinstance(layer, nn.Conv2d)][-1]
    bring(last, outputs_of(last, lambda: protonet(features[0])), 0.0, 1.0)
    coefficients = model.bbox_head.conv_coeff
    bring(coefficients, outputs_of(coefficients, lambda: model.bbox_head(features)), 0.0, COEFFICIENTS)


def build_student(cfg: Any) -> nn.Module:
    """Return the detector of a config, without weights and without a teacher."""
    from mmdet.models import build_detector

    from mmdeploy_ext.families.parts.detector_parts import without_teacher

    own = copy.deepcopy(cfg)  # a shallow copy shares its content
    own.model = without_teacher(cfg.model)
    return build_without_weights(own, build_detector, 'backbone')


def known(head: nn.Module) -> bool:
    """Return whether the rule knows the layers that give a head's class scores."""
    return any(role in ('class', 'mixed') for one in stages_of(head) for role, _ in _last_layers(one))


def stages_of(head: nn.Module) -> Sequence[nn.Module]:
    """Return the heads with last layers: the stages of those that have some (Cascade RPN), or it alone."""
    return getattr(head, 'stages', [head])


def check_known(model: nn.Module, filename: str) -> None:
    """Raise ConfigError, which names head and layers, for a head whose last layers the rule does not know."""
    head = getattr(model, 'bbox_head', None) or getattr(model, 'rpn_head', None)
    if head is None and getattr(model, 'roi_head', None) is not None:
        return  # its layers have one name each
    if head is None or not known(head):
        raise ConfigError(
            f'{filename}: the seeded rule knows no layer of {type(head).__name__} that gives class scores; '
            f'expected a convolution named as in mmdet 2.28: {LAYERS["class"]}|{LAYERS["mixed"]}'
        )
