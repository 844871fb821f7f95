"""What the graphs read of a one-stage head of mmrotate: its kind, outputs, priors, coder and thresholds.

`head` is the live module, of an exported kind; ConfigError: it is of none.
"""

import dataclasses
from typing import Any

from mmdet.core.anchor.point_generator import MlvlPointGenerator
from torch import nn

from mm2onnx_mmrotate.dense.facts import RotatedDenseFacts
from mm2onnx_mmrotate.dense.kinds import kind_of
from mm2onnx_mmrotate.suppression import rotated_nms_config


def generator_of(head: nn.Module) -> Any:
    """Return the generator of a head's priors."""
    return kind_of(head).generator(head)


def base_priors(generator: Any) -> list[list[list[float]]]:
    """Return the priors of the first cell of each level: anchors xyxy or points x, y; pixels.

    Of a refined head it is one point 0, 0, which stands for the box that the network gives.
    """
    if isinstance(generator, MlvlPointGenerator):
        return [[[side * generator.offset for side in stride]] for stride in generator.strides]
    if not hasattr(generator, 'base_anchors'):
        return [[[0.0, 0.0]] for _ in generator.strides]
    return [base.tolist() for base in generator.base_anchors]


def facts_of(head: nn.Module) -> RotatedDenseFacts:
    """Return how a head decodes, and what its `test_cfg` decides about results."""
    kind, generator = kind_of(head), generator_of(head)
    return RotatedDenseFacts(
        **dataclasses.asdict(rotated_nms_config(head.test_cfg or {})),
        clip_border=kind.clips,
        strides=[int(stride[0]) for stride in generator.strides],
        base_anchors=base_priors(generator),
        coder=kind.coder(head),
        head=kind.describe(head),
        num_classes=int(head.num_classes),
        angle_version=kind.version(head),
    )
