"""Seeded weights of one-stage detectors of rotated boxes: the targets of the last layers of their heads.

A target is mean and standard deviation of a layer's outputs, and maybe their largest value.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mm2onnx_mmrotate.dense.networks import head_outputs

Target = tuple[float, ...]
PLACING, REFINING = (0.0, 0.1), (0.0, 0.2)
"""Deltas of boxes that place samples of features, and of the head behind them. With 0.4 in both, rounding of
S2A-Net's features moves boxes of 2 pixels by 1e-3 (measured, R50 at 160x192): an IoU of 0.994."""
DELTAS, LOGITS = (0.0, 0.4), (-6.0, 1.3, 6.0)
"""Deltas of boxes of the other detectors, and logits of 15 classes: about one score of a hundred passes the
threshold. With the -4.6 of mmdet's heads ten of a hundred do, of which a suppression of rotated boxes would
compare thousands with each other."""
TARGETS = {
    r'conv_angle': (0.0, 0.6),
    r'retina_angle_cls': (-4.6, 1.3),
    r'reppoints_pts_(init|refine)_out': (0.0, 0.8),
    r'conv_centerness': (0.5, 1.0),
    r'(retina|odm|conv)_cls|reppoints_cls_out': LOGITS,
}
"""Regular expression of the names of last layers -> target of their outputs, boxes before scores."""
DISTANCES = {True: (2.0, 0.7), False: (3.4, 0.5)}
"""Target of the distances of a head of points: by whether they are in strides, or logarithms of pixels."""
ANGLE_CLASSES = (-4.6, 1.3)
"""Target of the logits of classes of angles."""


def heads(
    model: nn.Module, features: Sequence[torch.Tensor], regions: torch.Tensor
) -> Iterator[tuple[nn.Module, Callable[[], Any], Mapping[str, Target]]]:
    """Yield each head, what runs it, and name of a layer -> target; boxes of a head before its scores."""
    run = functools.partial(head_outputs, model, list(features))
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
            if names == 'conv_angle' and hasattr(head, 'angle_coder'):
                target = ANGLE_CLASSES
            for name, layer in head.named_modules():
                if isinstance(layer, nn.Conv2d) and re.fullmatch(names, name):
                    yield head, run, {name: target}
