"""The seeded rule of one-stage detectors: targets of the outputs of their last layers.

Glossary: B pictures, C channels, H, W rows and columns of a map.
"""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.source_code import nearest_base
from mmdeploy_ext.models.building import build_without_weights
from mmdeploy_ext.seeded.layers import (
    Numbers,
    Target,
    outputs_of,
    outputs_of_all,
    rescale,
    targets_of,
)


class NetworkCalibration(NamedTuple):
    """The pictures on which a network is calibrated, and the scales of its layers.

    Attributes:
        pictures: number of noise pictures. With only two, statistics of deep layers of a YOLOX are off by
            half on other pictures.
        scenes: number of scenes of the generated data set; without them a YOLOX finds nothing in
            `demo/toy.jpg`.
        exposures: whether a dark and a bright scene are added. In networks whose outputs grow with the light
            (no normalisation of the picture, SiLU) their scores would be exactly 1, which gives no order.
        residual: scale of the last normalisation of residual blocks, see `fill_network`. With 1.0 the network
            amplifies rounding: PyTorch's own float32 is up to 4e-5 of scale off float64 on R50 at 608x608,
            and two engines' errors add up to the bar of 1e-4; with 0.25 it is 5e-6 there and 2e-5 on R101.
        shift: mean of the normalised values of the neck and of inverted residual blocks; with 0 their norms
            stay. Around 0 every ReLU of NAS-FPN's 7 stages bends: float32 is 9.2e-5 of scale off float64.
        size: height and width of the pictures, pixels.
    """

    pictures: int = 2
    scenes: int = 2
    exposures: bool = False
    residual: float = 0.1
    shift: float = 1.0
    size: tuple[int, int] = (320, 416)


ATSS_CALIBRATION = NetworkCalibration(scenes=0, residual=0.25, shift=0.0)
"""The calibration of ATSS, which is older than that of the others and keeps its weights."""
SIZES = {'FPG': (384, 512), 'NASFPN': (512, 640), 'SSDNeck': (768, 896)}
"""Neck -> size of the pictures."""

EXPOSED_BACKBONES = ('CSPDarknet', 'CSPNeXt', 'EfficientNet', 'HourglassNet')
"""Backbones whose outputs grow with the light of a picture; see `NetworkCalibration.exposures`."""

ATSS_TARGETS = dict(atss_cls=Target(-4.6, 1.3), atss_reg=Target(0.0, 0.4), atss_centerness=Target(0.5, 1.0))
"""ATSSHead keeps the first version of the rule, which does not centre channels: published figures rest on it.
"""

CLASS_TARGET = Target(-4.6, 1.3)
"""Mean and deviation of class logits."""
DELTA_TARGET = Target(0.0, 0.4)
"""The same of deltas of boxes."""
BACKGROUND = 1.5
"""Logarithm of the weight of the background over that of all classes together."""

COEFFICIENT_DEVIATION = 0.5
"""Deviation before tanh; with 32 prototypes of deviation 1, mask logits have a deviation of about 1.5."""
MAX_LOGIT = 6.0
"""Largest class logit."""


def calibration_of(model: nn.Module) -> NetworkCalibration:
    """Return the calibration of a detector, which follows from the classes of its head, backbone and neck."""
    if _is_atss(getattr(model, 'bbox_head', None)):
        return ATSS_CALIBRATION
    types = [type(part).__name__ for part in model.modules()]
    sizes = [SIZES[kind] for kind in types if kind in SIZES]
    exposures = any(kind in EXPOSED_BACKBONES for kind in types)
    return NetworkCalibration(exposures=exposures, **({'size': sizes[0]} if sizes else {}))


def _is_atss(head: nn.Module | None) -> bool:
    return type(head).__name__ == 'ATSSHead'


def scale_outputs(
    head: nn.Module,
    features: Sequence[torch.Tensor],
    exposed_features: Callable[[], Sequence[torch.Tensor]] | None = None,
    run: Callable[[], Any] | None = None,
) -> None:
    """Rescale the last layers of a head in place so that their outputs have their targets.

    Args:
        head: head of a one-stage detector, or of proposals.
        features: features of each level, (B, C, H, W).
        exposed_features: returns those of dark and bright pictures, on which class logits are bounded by
            `MAX_LOGIT`; without them, of ATSSHead, of mixed layers and beside a background logits are not
            bounded.
        run: runs the head; by default it is called on the features.
    """
    run = run or (lambda: head(for_head(head, features)))
    if _is_atss(head):
        for name, target in ATSS_TARGETS.items():
            layer = getattr(head, name)
            layer.weight.mul_(target.deviation / outputs_of(layer, run).std())
            layer.bias.fill_(target.mean)
        return
    from mmdeploy_ext.families.parts.dense_heads import has_background  # imports mmdet

    exposed, kind = exposed_features and exposed_features(), _kind_of(head)
    for role, name in _last_layers(head):
        layer = head.get_submodule(name)
        outputs = outputs_of(layer, run)
        targets = kind.seeded(head, role, name, len(outputs))
        mean, deviation = targets[0]
        if len(targets) > 1:
            mean, deviation = targets_of(targets * (len(outputs) // len(targets)))
        rescale(layer, outputs, mean, deviation)
        if role == 'class' and exposed and not has_background(head):
            bound_logits(layer, outputs_of(layer, lambda: head(for_head(head, exposed))), mean)


def _kind_of(head: nn.Module) -> Any:
    from mmdeploy_ext.families.parts.dense_heads import KINDS, HeadKind  # imports mmdet

    return KINDS.get(nearest_base(type(head), KINDS), HeadKind())


def _last_layers(head: nn.Module) -> list[tuple[str, str]]:
    names = [name for name, module in head.named_modules() if isinstance(module, nn.Conv2d)]
    layers = _kind_of(head).layers
    return [(role, name) for role in layers for name in names if re.fullmatch(layers[role], name)]


def for_head(head: nn.Module, features: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Return the features (B, C, H, W) of each level for one call of a head."""
    masked = any(type(module).__name__ == 'MaskedConv2d' for module in head.modules())
    return [level[:1] for level in features] if masked else features


def bound_logits(layer: nn.Module, logits: torch.Tensor, mean: Numbers, largest: float = MAX_LOGIT) -> None:
    """Reduce the deviation of a layer's outputs, `logits` (C, n), until none is over `largest`."""
    share = ((largest - mean) / (logits.amax(1) - mean).clamp(min=1e-6)).min().clamp(max=1.0)
    if share < 1:
        layer.weight.mul_(share)
        layer.bias.copy_(mean - share * (mean - layer.bias))


def scale_prototypes(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Rescale the last layers of mask prototypes and coefficients in place, if a detector has them.

    `features` are those of each level, (B, C, H, W).
    """
    protonet = getattr(getattr(model, 'mask_head', None), 'protonet', None)
    if protonet is None:
        return
    last = [layer for layer in protonet if isinstance(layer, nn.Conv2d)][-1]
    rescale(last, outputs_of(last, lambda: protonet(features[0])), 0.0, 1.0)
    layer = model.bbox_head.conv_coeff
    rescale(layer, outputs_of(layer, lambda: model.bbox_head(features)), 0.0, COEFFICIENT_DEVIATION)


CORNER_TARGETS = dict(
    heat=CLASS_TARGET, off=Target(0.5, 0.2), emb=Target(0.0, 0.5), centripetal_shift=Target(2.6, 0.2)
)
"""Last layers of the branches of a corner -> targets."""
CORNER_CLASS_DEVIATION = 2.0
"""Deviation of the mean logits of classes: the best corners belong to a few of them, so that many form pairs.
"""
FAVOURED_CLASSES, FAVOURED_LOGIT = 3, 4.0
"""Number of classes of the best corners of CentripetalNet, and their mean logit above that of others."""


def is_cornered(model: nn.Module) -> bool:
    """Return whether boxes of a detector are pairs of corners: its head has a layer `tl_heat`."""
    return hasattr(getattr(model, 'bbox_head', None), 'tl_heat')


def scale_corners(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Rescale the last layers of a detector of corners (`is_cornered`) in place.

    `features` are those of each hourglass stage, (B, C, H, W).
    """
    head = model.bbox_head
    layers = {
        getattr(head, f'{corner}_{branch}')[-1][-1].conv: branch
        for branch in CORNER_TARGETS
        for corner in ('tl', 'br')
        if hasattr(head, f'{corner}_{branch}')
    }
    drawn = torch.randn(head.num_classes, generator=torch.Generator().manual_seed(1))
    if head.with_corner_emb:
        class_means = CORNER_CLASS_DEVIATION * drawn
    else:
        favoured = drawn.topk(FAVOURED_CLASSES).indices
        class_means = torch.zeros_like(drawn).index_fill(0, favoured, FAVOURED_LOGIT)
    outputs = outputs_of_all(list(layers), lambda: head(features))
    for (layer, branch), calls in zip(layers.items(), outputs, strict=True):
        mean, deviation = CORNER_TARGETS[branch]
        if branch == 'heat':
            mean = mean + class_means
        rescale(layer, torch.cat(calls, 1), mean, deviation)


def build_student(cfg: Any) -> nn.Module:
    """Return the detector of a config in evaluation mode, without weights and without a teacher."""
    from mmdet.models import build_detector

    from mmdeploy_ext.families.parts.detector_parts import without_teacher

    student_cfg = copy.deepcopy(cfg)  # a shallow copy shares its content
    student_cfg.model = without_teacher(cfg.model)
    return build_without_weights(student_cfg, build_detector, 'backbone')


def is_supported(head: nn.Module) -> bool:
    """Return whether a stage of a head has a convolution for class scores that its kind names."""
    return any(role in ('class', 'mixed') for stage in stages_of(head) for role, _ in _last_layers(stage))


def stages_of(head: nn.Module) -> Sequence[nn.Module]:
    """Return the stages of a head that has some (Cascade RPN), or the head alone."""
    return getattr(head, 'stages', [head])


def check_supported(model: nn.Module, filename: str) -> None:
    """Raise ConfigError, which names config file, head and layers, for a head that is not supported."""
    head = getattr(model, 'bbox_head', None) or getattr(model, 'rpn_head', None)
    if head is None and getattr(model, 'roi_head', None) is not None:
        return  # `regions.py` has the names of its layers
    if head is None or not is_supported(head):
        raise ConfigError(
            f'{filename}: the seeded rule knows no layer of {type(head).__name__} that gives class scores; '
            f'expected a convolution named as in mmdet 2.28: {_kind_of(head).layers["class"]}'
        )
