"""What the graphs read of a one-stage head of mmrotate: its kind, outputs, priors, coder and thresholds.

`head` is the live module, of an exported kind; ConfigError: it is of none.
"""

from typing import Any

from mmdet.core.anchor.point_generator import MlvlPointGenerator
from torch import nn

from mm2onnx_mmrotate.dense.facts import HeadFacts
from mm2onnx_mmrotate.dense.head import RotatedHead
from mm2onnx_mmrotate.dense.kinds import kind_of
from mm2onnx_mmrotate.suppression import RotatedNmsConfig, rotated_nms_config


def generator_of(head: nn.Module) -> Any:
    """Return the generator of a head's priors."""
    return kind_of(head).generator(head)


def described(head: nn.Module) -> RotatedHead:
    """Return the description of a head: its outputs, and how they become candidates."""
    return kind_of(head).describe(head)


def version_of(head: nn.Module) -> str:
    """Return the version of the angles of a head's results, a key of `angles.VERSIONS`."""
    return kind_of(head).version(head)


def base_priors(head: nn.Module) -> list[list[list[float]]]:
    """Return the priors of the first cell of each level: anchors xyxy or points x, y; pixels.

    Of a refined head it is one point 0, 0, which stands for the box that the network gives.
    """
    generator = generator_of(head)
    if described(head).refined:  # a box per cell, which the network gives
        return [[[0.0, 0.0]] for _ in generator.strides]
    if isinstance(generator, MlvlPointGenerator):
        return [[[side * generator.offset for side in stride]] for stride in generator.strides]
    return [base.tolist() for base in generator.base_anchors]


def priors_per_cell(head: nn.Module) -> list[int]:
    """Return the number of priors of a cell of each level."""
    return [len(priors) for priors in base_priors(head)]


def facts_of(head: nn.Module) -> HeadFacts:
    """Return how a head decodes."""
    return HeadFacts(
        strides=[int(stride[0]) for stride in generator_of(head).strides],
        base_priors=base_priors(head),
        coder=kind_of(head).coder(head),
        num_classes=int(head.num_classes),
        angle_version=version_of(head),
        head=described(head),
    )


def thresholds(head: nn.Module) -> RotatedNmsConfig:
    """Return the thresholds of a head; limits that `test_cfg` lacks, or that are not positive, are -1.

    ConfigError: it lacks `score_thr` or `nms.iou_thr`, or an entry is no number.
    """
    return rotated_nms_config(head.test_cfg or {})
