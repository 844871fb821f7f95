"""The seeded rule of one-stage detectors: targets of the last layers' outputs.

Glossary: B pictures, C channels, H, W rows and columns of a map.
"""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dev.seeded.layers import Numbers, Target, outputs_of, outputs_of_all, rescale, targets_of
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.upstream.models.building import build_without_weights


class NetworkCalibration(NamedTuple):
    """The pictures on which a network is calibrated, and the scales of its layers.

    Attributes:
        pictures: number of noise pictures; with two, deep statistics of a YOLOX are off by half.
        scenes: number of generated scenes; without them a YOLOX finds nothing in `demo/toy.jpg`.
        exposures: add a dark and a bright scene, for networks with outputs that grow with the light (scores
            of 1).
        residual: scale of the last normalisation of residual blocks, see `fill_network`. With 1.0 PyTorch's
            float32 is up to 4e-5 of scale off float64 on R50 at 608x608; with 0.25 5e-6, and 2e-5 on R101.
        shift: mean of the normalised values of the neck and of inverted residual blocks; 0 leaves their
            norms. Around 0, NAS-FPN's ReLUs put float32 9.2e-5 of scale off float64.
        size: height and width, pixels.
    """

    pictures: int = 2
    scenes: int = 2
    exposures: bool = False
    residual: float = 0.1
    shift: float = 1.0
    size: tuple[int, int] = (320, 416)


ATSS_CALIBRATION = NetworkCalibration(scenes=0, residual=0.25, shift=0.0)
"""An older calibration that keeps ATSS's weights."""
SIZES = {'FPG': (384, 512), 'NASFPN': (512, 640), 'SSDNeck': (768, 896)}
"""Neck -> size of the pictures."""

EXPOSED_BACKBONES = ('CSPDarknet', 'CSPNeXt', 'EfficientNet', 'HourglassNet')

ATSS_TARGETS = dict(atss_cls=Target(-4.6, 1.3), atss_reg=Target(0.0, 0.4), atss_centerness=Target(0.5, 1.0))
"""The first version of the rule, without centred channels; published figures rest on it."""

CLASS_TARGET = Target(-4.6, 1.3)
"""Mean and deviation of class logits."""
DELTA_TARGET = Target(0.0, 0.4)
"""Mean and deviation of box deltas."""
BACKGROUND = 1.5
"""Logarithm of the background's weight over all classes."""

COEFFICIENT_DEVIATION = 0.5
"""Deviation before tanh; mask logits of 32 prototypes get about 1.5."""
MAX_LOGIT = 6.0
"""Largest class logit."""


def calibration_of(model: nn.Module) -> NetworkCalibration:
    """Return a detector's calibration, by the classes of head, backbone and neck."""
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
    """Rescale the last layers of a head, in place, to the targets of their outputs.

    - `features`: of each level, (B, C, H, W).
    - `exposed_features`: returns features of dark and bright pictures, which bound class logits by
      `MAX_LOGIT`; not for ATSSHead, mixed layers and logits beside a background.
    - `run`: runs the head; default: calls it on the features.
    """
    run = run or (lambda: head(for_head(head, features)))
    if _is_atss(head):
        for name, target in ATSS_TARGETS.items():
            layer = getattr(head, name)
            layer.weight.mul_(target.deviation / outputs_of(layer, run).std())
            layer.bias.fill_(target.mean)
        return
    from mmdeploy_ext.families.common.dense_heads import has_background  # imports mmdet

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
    from mmdeploy_ext.families.common.dense_heads import KINDS, HeadKind  # imports mmdet

    return KINDS.get(nearest_base(type(head), KINDS), HeadKind())


def _last_layers(head: nn.Module) -> list[tuple[str, str]]:
    names = [name for name, module in head.named_modules() if isinstance(module, nn.Conv2d)]
    layers = _kind_of(head).layers
    return [(role, name) for role in layers for name in names if re.fullmatch(layers[role], name)]


def for_head(head: nn.Module, features: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    masked = any(type(module).__name__ == 'MaskedConv2d' for module in head.modules())
    return [level[:1] for level in features] if masked else features


def bound_logits(layer: nn.Module, logits: torch.Tensor, mean: Numbers, largest: float = MAX_LOGIT) -> None:
    """Reduce a layer's deviation until none of its outputs `logits` (C, n) exceeds `largest`."""
    share = ((largest - mean) / (logits.amax(1) - mean).clamp(min=1e-6)).min().clamp(max=1.0)
    if share < 1:
        layer.weight.mul_(share)
        layer.bias.copy_(mean - share * (mean - layer.bias))


def scale_prototypes(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Rescale the last layers of mask prototypes and coefficients, if any, in place.

    `features`: of each level, (B, C, H, W).
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
"""Deviation of the classes' mean logits: corners of few classes form many pairs."""
FAVOURED_CLASSES, FAVOURED_LOGIT = 3, 4.0
"""Classes of the best corners of CentripetalNet, and their advantage in mean logit."""


def is_cornered(model: nn.Module) -> bool:
    return hasattr(getattr(model, 'bbox_head', None), 'tl_heat')


def scale_corners(model: nn.Module, features: Sequence[torch.Tensor]) -> None:
    """Rescale the last layers of a detector of corners (`is_cornered`), in place.

    `features`: of each hourglass stage, (B, C, H, W).
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
    """Return the detector of a config in evaluation mode, without a teacher."""
    from mmdet.models import build_detector

    from mmdeploy_ext.families.common.detector_parts import without_teacher

    student_cfg = copy.deepcopy(cfg)  # a shallow copy shares its content
    student_cfg.model = without_teacher(cfg.model)
    return build_without_weights(student_cfg, build_detector, 'backbone')


def is_supported(head: nn.Module) -> bool:
    """Whether a stage of a head has a convolution for class scores."""
    return any(role in ('class', 'mixed') for stage in stages_of(head) for role, _ in _last_layers(stage))


def stages_of(head: nn.Module) -> Sequence[nn.Module]:
    """Return the stages of a head (Cascade RPN), or the head alone."""
    return getattr(head, 'stages', [head])


def check_supported(model: nn.Module, filename: str) -> None:
    """Raise ConfigError for an unsupported head."""
    head = getattr(model, 'bbox_head', None) or getattr(model, 'rpn_head', None)
    if head is None and getattr(model, 'roi_head', None) is not None:
        return  # `regions.py` has the names of its layers
    if head is None or not is_supported(head):
        raise ConfigError(
            f'{filename}: the seeded rule knows no layer of {type(head).__name__} that gives class scores; '
            f'expected a convolution named as in mmdet 2.28: {_kind_of(head).layers["class"]}'
        )
