"""Heads of mmrotate's two-stage detectors: which export, their outputs and the settings of their coders.

The `rpn_head` of a detector makes proposals, its `roi_head` looks at regions in one stage or more; each stage
has a head of boxes, `bbox_head`, and an extractor that pools the features of its regions.
"""

from typing import Any

from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmrotate.core.bbox import coder as coders
from mmrotate.models import dense_heads, detectors, roi_heads
from mmrotate.models.roi_heads import bbox_heads
from mmrotate.models.roi_heads.roi_extractors import RotatedSingleRoIExtractor
from torch import nn

from mm2onnx_mmrotate.deltas import WH_RATIO_CLIP, Delta, delta_of
from mm2onnx_mmrotate.two_stage.coders import GlidingVertex, MidpointOffset
from mm2onnx_mmrotate.two_stage.roi_align_rotated import check_rotated_layer
from mmdeploy_ext.families import regions
from mmdeploy_ext.families.images import ConfigError
from mmdeploy_ext.families.regions import check_extractor, part_of, stages_of

DETECTOR = detectors.RotatedTwoStageDetector
RPN_HEADS = (dense_heads.OrientedRPNHead, dense_heads.RotatedRPNHead)
ROI_HEADS = (
    roi_heads.OrientedStandardRoIHead,
    roi_heads.GVRatioRoIHead,
    roi_heads.RoITransRoIHead,
    roi_heads.RotatedStandardRoIHead,
)
"""Heads of regions that the graphs follow; the first that a head is derived from counts."""
BOX_HEADS = (bbox_heads.GVBBoxHead, bbox_heads.RotatedBBoxHead)


def upstream_of(part: nn.Module, classes: tuple[type, ...], key: str) -> type:
    """Return the first of `classes` that a part is of; ConfigError, which names its `key`: it is of none."""
    for upstream in classes:
        if isinstance(part, upstream):
            return upstream
    expected = ', '.join(upstream.__name__ for upstream in classes)
    raise ConfigError(f'model.{key}.type={type(part).__name__}: supported are {expected}')


def is_oriented(rpn_head: nn.Module) -> bool:
    """Return whether proposals are rotated boxes."""
    return isinstance(rpn_head, dense_heads.OrientedRPNHead)


def midpoint_settings(coder: Any) -> MidpointOffset:
    """Return the settings of a `MidpointOffsetCoder`."""
    return MidpointOffset(
        means=list(map(float, coder.means)),
        stds=list(map(float, coder.stds)),
        wh_ratio_clip=WH_RATIO_CLIP,
        version=coder.version,
    )


def coder_of(head: nn.Module) -> Delta | GlidingVertex:
    """Return the settings of the coder of a head of boxes.

    ConfigError: the head has another, or two angle versions.
    """
    coder = head.bbox_coder
    if isinstance(head, bbox_heads.GVBBoxHead):
        if head.version != head.fix_coder.version:
            raise ConfigError(
                f'model.roi_head.bbox_head: version={head.version!r}, but its fix_coder has '
                f'angle_range={head.fix_coder.version!r}; set both to the same value'
            )
        if type(coder) is DeltaXYWHBBoxCoder:
            return GlidingVertex(
                upright=regions.coder_of(head),
                clip=bool(coder.clip_border),
                ratio_thr=float(head.ratio_thr),
                version=head.fix_coder.version,
            )
    elif type(coder) is coders.DeltaXYWHAHBBoxCoder:
        return delta_of(coder, 'upright_delta')
    elif type(coder) is coders.DeltaXYWHAOBBoxCoder:
        return delta_of(coder, 'rotated_delta')
    raise ConfigError(
        f'model.roi_head.bbox_head ({type(head).__name__}): bbox_coder is {type(coder).__name__}; '
        'supported are DeltaXYWHAHBBoxCoder, DeltaXYWHAOBBoxCoder and, in a GVBBoxHead, '
        'DeltaXYWHBBoxCoder'
    )


def output_columns(head: nn.Module) -> tuple[tuple[str, int], ...]:
    """Return (name, columns per box) of the outputs of a head of boxes behind its class logits.

    A head that is not class-agnostic gives a box for each class.
    """
    if isinstance(head, bbox_heads.GVBBoxHead):
        return ('bbox_pred', 4), ('fix_pred', 4), ('ratio_pred', 1)
    return (('bbox_pred', 5),)


def last_head(roi_head: nn.Module) -> nn.Module:
    """Return the head of boxes whose boxes are the results."""
    return part_of(roi_head, 'bbox_head', stages_of(roi_head) - 1)


def check_rpn_head(head: nn.Module) -> None:
    """Refuse (ConfigError) a head of proposals that the graph does not repeat."""
    upstream = upstream_of(head, RPN_HEADS, 'rpn_head')
    expected = coders.MidpointOffsetCoder if is_oriented(head) else DeltaXYWHBBoxCoder
    if type(head.bbox_coder) is not expected:
        raise ConfigError(
            f'model.rpn_head.bbox_coder is {type(head.bbox_coder).__name__}; {upstream.__name__} needs '
            f'{expected.__name__}'
        )
    if is_oriented(head) and head.bbox_coder.version != head.version:
        raise ConfigError(
            f'model.rpn_head: version={head.version!r}, but its bbox_coder has '
            f'angle_range={head.bbox_coder.version!r}; set both to the same value'
        )


def check_roi_head(roi_head: nn.Module, oriented: bool) -> None:
    """Refuse (ConfigError) a head of regions, or a part of it, that the graph does not repeat.

    `oriented` is whether its proposals are rotated boxes.
    """
    upstream_of(roi_head, ROI_HEADS, 'roi_head')
    rotated = oriented
    for stage in range(stages_of(roi_head)):
        extractor = part_of(roi_head, 'bbox_roi_extractor', stage)
        check_rois(extractor, rotated)
        head = part_of(roi_head, 'bbox_head', stage)
        upstream_of(head, BOX_HEADS, 'roi_head.bbox_head')
        if not getattr(head, 'with_reg', True) or not getattr(head, 'with_cls', True):
            raise ConfigError('model.roi_head.bbox_head: expected with_cls=True and with_reg=True')
        settings = coder_of(head)
        if rotated != (settings.type == 'rotated_delta'):
            raise ConfigError(
                f'model.roi_head.bbox_head, stage {stage}: {type(head.bbox_coder).__name__} does not fit '
                f'{"rotated" if rotated else "upright"} regions'
            )
        last = stage + 1 == stages_of(roi_head)
        agnostic = settings.type == 'upright_delta' or not last
        if agnostic and not head.reg_class_agnostic:
            raise ConfigError(
                f'model.roi_head.bbox_head, stage {stage}: reg_class_agnostic=False; expected True, since '
                'mmrotate uses one box for all classes there'
            )
        if not last and settings.type != 'upright_delta':
            raise ConfigError(
                f'model.roi_head.num_stages={stages_of(roi_head)}: mmrotate refines only upright regions, '
                'in a stage before the last'
            )
        rotated = True


def check_rois(extractor: nn.Module, rotated: bool) -> None:
    """Refuse (ConfigError) an extractor that does not fit the regions, or that the graph does not repeat.

    `rotated` is whether the regions are rotated boxes, not upright ones.
    """
    if not rotated:
        check_extractor(extractor)
        if type(extractor) is not SingleRoIExtractor:
            raise ConfigError(f'{type(extractor).__name__}: upright regions need SingleRoIExtractor')
        return
    if type(extractor) is not RotatedSingleRoIExtractor:
        raise ConfigError(f'{type(extractor).__name__}: rotated regions need RotatedSingleRoIExtractor')
    for layer in extractor.roi_layers:
        if type(layer).__name__ == 'RiRoIAlignRotated':
            raise ConfigError(
                'model.roi_head.bbox_roi_extractor.roi_layer.type=RiRoIAlignRotated: mmcv has no CPU '
                'kernel for it, so an export could not be compared'
            )
        check_rotated_layer(layer)
