"""The supported parts of two-stage detectors of mmdet 2.28.2."""

from collections.abc import Mapping
from typing import Any

from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import library_failure
from mmdeploy_ext.families.common.detector_parts import check_settings
from mmdeploy_ext.families.common.mask_heads import check_flow, points_of, threshold
from mmdeploy_ext.families.common.regions import (
    Regions,
    check_extractor,
    context_names,
    grid_of,
    part_of,
    stages_of,
)
from mmdeploy_ext.families.two_stage import boxes, masks
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.building import names_of_class

detectors, roi_heads = mmdet_module('mmdet.models.detectors'), mmdet_module('mmdet.models.roi_heads')
dense_heads, seg_heads = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.seg_heads')
mask_heads = mmdet_module('mmdet.models.roi_heads.mask_heads')

PANOPTIC = detectors.TwoStagePanopticSegmentor
DETECTOR_CLASSES = (detectors.TridentFasterRCNN, PANOPTIC, detectors.TwoStageDetector, detectors.RPN)
ROI_HEADS = (
    roi_heads.HybridTaskCascadeRoIHead,
    roi_heads.SCNetRoIHead,
    roi_heads.CascadeRoIHead,
    roi_heads.DoubleHeadRoIHead,
    roi_heads.TridentRoIHead,
    roi_heads.GridRoIHead,
    roi_heads.MaskScoringRoIHead,
    roi_heads.PointRendRoIHead,
    roi_heads.PISARoIHead,
    roi_heads.StandardRoIHead,
)


UNTRACED = (
    '.extract_feat', '.simple_test_img_only', '.extract_img_feat', '_bbox_forward', '_mask_forward',
    '_fuse_glbctx', 'merge_trident_bboxes', '_mask_point_forward_test', '_get_fine_grained_point_feats',
    'regress_by_class', 'refine_bboxes', 'bbox_pred_split', 'get_seg_masks', 'get_mask_scores',
    'get_roi_rel_points_test', 'calc_sub_regions', '_lay_masks', 'roi_rescale', 'map_roi_levels',
    'anchor_offset', 'rpn_head.stages.?.forward', 'rpn_head.stages.?.forward_single',
    'roi_head.grid_head.forward', 'semantic_head.forward', '*roi_extractor*.forward', '*roi_layers.?.forward',
)  # fmt: skip


def is_image_branch(cfg: Any) -> bool:
    """Return whether a config is ImVoteNet's first stage; False without mmdet3d."""
    model = cfg.model
    if 'ImVoteNet' not in names_of_class(DETECTORS, model.get('type')) or library_failure('mmdet3d'):
        return False
    has_points = any(model.get(key) for key in model if key.startswith('pts_'))
    return not has_points and bool(model.get('img_rpn_head') and model.get('img_roi_head'))


def result_key(detector: type) -> str:
    return 'panoptic' if issubclass(detector, PANOPTIC) else 'rcnn'


def result_cfg(model: nn.Module) -> Any:
    if getattr(model, 'roi_head', None) is None:
        return model.rpn_head.test_cfg
    return model.test_cfg.panoptic if isinstance(model, PANOPTIC) else model.roi_head.test_cfg


def check_detector(model: Mapping[str, Any]) -> None:
    """Refuse a detector that lacks a head, or a TridentNet that tests all branches."""
    detector = DETECTORS.get(model['type'])
    upstream = next(kind for kind in DETECTOR_CLASSES if issubclass(detector, kind))
    keys = []
    if not issubclass(detector, detectors.FastRCNN):
        keys.append('rpn_head')
    if upstream is not detectors.RPN:
        keys.append('roi_head')
    for key in keys:
        if not model.get(key):
            raise ConfigError(f'model.{key} is missing; {detector.__name__} needs one')
    if 'rpn_head' not in keys and model['roi_head'].get('mask_head'):
        raise ConfigError(f'model.roi_head.mask_head is not supported for {detector.__name__}; remove it')
    if upstream is detectors.TridentFasterRCNN and model['roi_head'].get('test_branch_idx') == -1:
        raise ConfigError(
            'model.roi_head.test_branch_idx=-1 is not supported; set the index of one branch of TridentNet'
        )


def check_roi_head(roi_head: nn.Module, key: str = 'rcnn') -> None:
    name = type(roi_head).__name__
    if not isinstance(roi_head, ROI_HEADS):
        raise ConfigError(f'model.roi_head.type={name}: this RoI head is not supported')
    if not roi_head.with_bbox:
        raise ConfigError(f'model.roi_head.bbox_head is missing; {name} needs one')
    needed = boxes.NEEDED if points_of(roi_head) is None else (*boxes.NEEDED, *masks.POINT_SETTINGS)
    check_settings(roi_head.test_cfg, f'model.test_cfg.{key}', needed, name)
    boxes.thresholds(roi_head.test_cfg, key)
    has_grid = grid_of(roi_head) is not None
    for stage in range(stages_of(roi_head)):
        check_extractor(part_of(roi_head, 'bbox_roi_extractor', stage))
        box_head = part_of(roi_head, 'bbox_head', stage)
        boxes.check_head(box_head)
        if not has_grid and not getattr(box_head, 'with_reg', True):
            raise ConfigError('model.roi_head.bbox_head.with_reg=False is supported only in a GridRoIHead')
        if roi_head.with_mask:
            check_extractor(part_of(roi_head, 'mask_roi_extractor', stage))
            masks.check_head(part_of(roi_head, 'mask_head', stage))
    if has_grid:
        check_extractor(roi_head.grid_roi_extractor)
        if roi_head.with_mask:  # mmdet scales boxes otherwise then
            raise ConfigError('model.roi_head.mask_head is not supported for GridRoIHead; remove it')
    if 'semantic' in context_names(roi_head):
        check_extractor(roi_head.semantic_roi_extractor)
    Regions(roi_head, 'bbox', 0)  # refuses semantic maps whose cells do not fit
    if roi_head.with_mask:
        Regions(roi_head, 'mask', 0)  # as above
        check_flow(roi_head)
        threshold(roi_head.test_cfg, key)
