"""Heads with 3D anchors: checks, flat outputs, settings of the decoding."""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.core.anchor.builder import ANCHOR_GENERATORS
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet3d.models.builder import HEADS
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.upstream.models.building import names_of_class

PER_CLASS = 'AlignedAnchor3DRangeGeneratorPerCls'
"""Anchor generator of heads with a map per class."""
GENERATORS = {'Anchor3DRangeGenerator': False, 'AlignedAnchor3DRangeGenerator': True, PER_CLASS: True}
"""Anchor generator -> whether anchors lie in the middle of cells (at the corner with `align_corner`)."""
PER_CLASS_HEAD = 'ShapeAwareHead'
CODER = 'DeltaXYZWLHRBBoxCoder'

UNTRACED = (
    'get_bboxes', 'get_bboxes_single', 'decode', 'grid_anchors', 'single_level_grid_anchors',
    'multi_cls_grid_anchors', 'anchors_single_range',
)  # fmt: skip


def check_anchor_head(filename: str, key: str, head: Mapping[str, Any]) -> None:
    generator_type = (head.get('anchor_generator') or {}).get('type')
    generators = names_of_class(ANCHOR_GENERATORS, generator_type)
    coder_type = (head.get('bbox_coder') or dict(type=CODER)).get('type')
    for part, type_name, names, allowed in (
        ('anchor_generator', generator_type, generators, tuple(GENERATORS)),
        ('bbox_coder', coder_type, names_of_class(BBOX_CODERS, coder_type), (CODER,)),
    ):
        if not set(names) & set(allowed):
            raise ConfigError(
                f'{filename}: {key}.{part}.type={type_name!r}, expected {" or ".join(allowed)}, or a class '
                f'derived from it'
            )
    if (PER_CLASS_HEAD in names_of_class(HEADS, head['type'])) != (PER_CLASS in generators):
        raise ConfigError(
            f'{filename}: {key}.anchor_generator.type={generator_type!r} of {head["type"]}: {PER_CLASS} and '
            f'{PER_CLASS_HEAD} go together'
        )
    if not head.get('loss_cls', dict(use_sigmoid=True)).get('use_sigmoid', False):
        raise ConfigError(
            f'{filename}: {key}.loss_cls.use_sigmoid=False: only sigmoid scores are supported; expected True'
        )
    if not head.get('use_direction_classifier', True):
        raise ConfigError(f'{filename}: {key}.use_direction_classifier=False is not supported; expected True')


def flat_outputs(outputs: tuple[list[torch.Tensor], ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for level in zip(*outputs, strict=True) for tensor in level)


def anchor_settings(head: nn.Module) -> dict[str, Any]:
    """Return the fields of an `AnchorRule` of a head, without its limit of results and `cells`."""
    generator, test = head.anchor_generator, head.test_cfg
    return dict(
        num_classes=int(head.num_classes),
        code_size=int(head.box_code_size),
        levels=int(generator.num_levels),
        aligned=GENERATORS[nearest_base(type(generator), GENERATORS)],
        align_corner=bool(getattr(generator, 'align_corner', False)),
        ranges=[float(value) for row in generator.ranges for value in row],
        sizes=[float(value) for row in generator.sizes for value in row],
        rotations=[float(value) for value in generator.rotations],
        scales=[float(value) for value in generator.scales],
        size_per_range=bool(generator.size_per_range),
        dir_offset=float(head.dir_offset),
        dir_limit_offset=float(head.dir_limit_offset),
        nms_pre=int(test.get('nms_pre', -1)),
        score_thr=float(test.get('score_thr', 0)),
        nms_thr=float(test['nms_thr']),
        rotated=bool(test['use_rotate_nms']),
    )
