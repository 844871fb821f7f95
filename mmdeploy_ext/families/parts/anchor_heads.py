"""Heads with anchors in 3D: what is refused, their outputs as one tuple, and how they decode."""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet3d.models.builder import HEADS
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.building import names_of_class
from mmdeploy_ext.families.parts.runtime.anchors3d import AnchorRule

PER_CLASS = 'AlignedAnchor3DRangeGeneratorPerCls'
"""Anchor generator of heads in which classes have maps of their own."""
GENERATORS = {'Anchor3DRangeGenerator': False, 'AlignedAnchor3DRangeGenerator': True, PER_CLASS: True}
"""Anchor generator -> whether anchors lie in the middle of cells."""
PER_CLASS_HEAD = 'ShapeAwareHead'
"""Head of SSN, in which classes have maps of their own."""
CODER = 'DeltaXYZWLHRBBoxCoder'
"""The one box coder that the runtime repeats."""


def check_anchor_head(filename: str, key: str, head: Mapping[str, Any]) -> None:
    """Refuse (ConfigError) a head with anchors that `AnchorRule` does not decode.

    Args:
        filename: of the config, for messages.
        key: key of the head in it.
        head: its entry.
    """
    for part, type_name, allowed in (
        ('anchor_generator', (head.get('anchor_generator') or {}).get('type'), tuple(GENERATORS)),
        ('bbox_coder', (head.get('bbox_coder') or dict(type=CODER)).get('type'), (CODER,)),
    ):
        if type_name not in allowed:
            raise ConfigError(f'{filename}: {key}.{part}.type={type_name!r}, expected {" or ".join(allowed)}')
    generator = head['anchor_generator']['type']
    if (PER_CLASS_HEAD in names_of_class(HEADS, head['type'])) != (generator == PER_CLASS):
        raise ConfigError(
            f'{filename}: {key}.anchor_generator.type={generator!r} of {head["type"]}: {PER_CLASS} and '
            f'{PER_CLASS_HEAD} go together'
        )
    if not head.get('loss_cls', dict(use_sigmoid=True)).get('use_sigmoid', False):
        raise ConfigError(f'{filename}: {key}.loss_cls.use_sigmoid=False: scores are exported as sigmoids')
    if not head.get('use_direction_classifier', True):
        raise ConfigError(f'{filename}: {key}.use_direction_classifier=False is not exported')


def flat_outputs(outputs: tuple[list[torch.Tensor], ...]) -> tuple[torch.Tensor, ...]:
    """Return what `Anchor3DHead.forward` gives as one tuple, in the order of `AnchorRule.output_names`.

    `outputs` are three lists of a tensor per level.
    """
    return tuple(tensor for level in zip(*outputs, strict=True) for tensor in level)


def anchor_rule(head: nn.Module, cells: tuple[int, ...] = ()) -> AnchorRule:
    """Return the settings by which an `Anchor3DHead` decodes.

    `cells` are rows and columns of the map of each range of anchors, one after the other, for a head whose
    ranges have maps of their own; () for others. `test_cfg` of the head has `nms_thr`, `use_rotate_nms` and
    `max_num`.
    """

    def flat(rows: Any) -> tuple[float, ...]:
        return tuple(float(value) for row in rows for value in row)

    anchors, test = head.anchor_generator, head.test_cfg
    return AnchorRule(
        num_classes=int(head.num_classes),
        code_size=int(head.box_code_size),
        levels=int(anchors.num_levels),
        aligned=GENERATORS[type(anchors).__name__],
        align_corner=bool(getattr(anchors, 'align_corner', False)),
        ranges=flat(anchors.ranges),
        sizes=flat(anchors.sizes),
        rotations=tuple(map(float, anchors.rotations)),
        scales=tuple(map(float, anchors.scales)),
        size_per_range=bool(anchors.size_per_range),
        dir_offset=float(head.dir_offset),
        dir_limit_offset=float(head.dir_limit_offset),
        nms_pre=int(test.get('nms_pre', -1)),
        score_thr=float(test.get('score_thr', 0)),
        nms_thr=float(test['nms_thr']),
        rotated=bool(test['use_rotate_nms']),
        max_num=int(test['max_num']),
        cells=cells,
    )
