"""Heads with a decoding of their own: a `_get_bboxes_single` or a `get_bboxes` that is not the base class's.

The boxes and scores are those of mmdet's own functions, for the proof. Source: mmdet 2.28.2
`models/dense_heads`, the file of each head.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.dense_head import Head, factor_head
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import positive
from mmdeploy_ext.families.parts.plain_heads import (
    Kind,
    Rows,
    chosen_coder,
    class_scores,
    clips,
    decoded,
    delta,
    plain_head,
    scored,
    strides,
)

heads = mmdet_module('mmdet.models.dense_heads')
MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator
get_local_maximum = mmdet_module('mmdet.models.utils.gaussian_target').get_local_maximum

GUIDED = 'square_anchor_generator'
"""Attribute with the priors of heads of guided anchors, and of SABL's."""
CENTRE_STRIDE = 4
"""Of CenterNet's maps behind its own neck, pixels."""
UNCLIPPED = 1e6
"""Far from every border, for functions of upstream that always clip; in float64 nothing is lost."""


# --- heads with a `_get_bboxes_single` of their own ----------------------------------------------------


def _gfl_head(head: nn.Module) -> Head:
    return Head((('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4 * (head.reg_max + 1))))


def _gfl_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    sides = head.integral(rows['bbox_pred']) * head.prior_generator.strides[level][0]
    return head.bbox_coder.decode(head.anchor_center(priors), sides)


def _tood_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    return rows['bbox_pred'] * head.prior_generator.strides[level][0]


def _far(decode: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return boxes of a `_bbox_decode` that always clips: in float64, far from every border."""

    def boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        far = decode(head, level, rows['bbox_pred'].double(), priors.double() + UNCLIPPED)
        return (far - UNCLIPPED).float()

    return boxes


NO_BORDER = (2 * UNCLIPPED, 2 * UNCLIPPED)
_reppoints_boxes = _far(
    lambda head, level, pred, points: head._bbox_decode(points, pred, head.point_strides[level], NO_BORDER)
)
_fovea_boxes = _far(
    lambda head, level, pred, points: head._bbox_decode(points, pred, head.base_edge_list[level], NO_BORDER)
)

# --- heads with a `get_bboxes` of their own -----------------------------------------------------------


def _paa_head(head: nn.Module) -> Head:
    chosen = dict(root=True, choose='priors', judged='product', votes=bool(head.with_score_voting))
    return dataclasses.replace(factor_head(int(head.cls_out_channels), 'iou_pred'), **chosen)


def _guided_head(head: nn.Module) -> Head:
    outputs = (
        ('cls_score', int(head.cls_out_channels)),
        ('bbox_pred', 4),
        ('shape_pred', 2),
        ('loc_pred', 1),
    )
    chosen = dict(choose='priors', visible='loc_pred', visible_thr=float(head.loc_filter_thr))
    return Head(outputs, **scored(head, GUIDED), **chosen)


def _guided_coder(head: nn.Module) -> dict[str, Any]:
    anchors = dict(delta(head.anchor_coder), wh_ratio_clip=1e-6)
    return dict(delta(head.bbox_coder), type='guided', anchor_coder=anchors)


def _guided_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    deltas = torch.cat([torch.zeros_like(rows['shape_pred']), rows['shape_pred']], 1)
    return head.bbox_coder.decode(
        head.anchor_coder.decode(priors, deltas, wh_ratio_clip=1e-6), rows['bbox_pred']
    )


def _sabl_head(head: nn.Module) -> Head:
    sides = 4 * head.side_num
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_cls', sides), ('bbox_reg', sides))
    return Head(outputs, factor='confidence', clip_inset=1.0, **scored(head, GUIDED))


def bucket_settings(head: nn.Module) -> dict[str, Any]:
    """Return the settings of the coder of a side-aware head, of priors or of regions."""
    coder = head.bbox_coder
    buckets = dict(buckets=head.side_num, num_buckets=coder.num_buckets, scale_factor=coder.scale_factor)
    return dict(type='bucket', **buckets)


def _sabl_decoded(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return head.bbox_coder.decode(priors, [rows['bbox_cls'].contiguous(), rows['bbox_reg'].contiguous()])


def _sabl_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores, _ = class_scores(head, dict(list(rows.items())[:2]), priors)
    return scores, _sabl_decoded(head, rows, priors)[1]


def _sabl_flat(outputs: Any) -> list[torch.Tensor]:
    scores, boxes = outputs
    return [*scores, *(one[0] for one in boxes), *(one[1] for one in boxes)]


def _yolo_head(head: nn.Module) -> Head:
    return Head(
        (('pred_map', int(head.num_attrib)),),
        *('pred_map', 5),
        factor='objectness',
        factor_from=('pred_map', 4),
        choose='all',
        conf_thr=float(head.test_cfg.get('conf_thr', -1)),
    )


def _yolo_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    pred = rows['pred_map']
    pred = torch.cat([pred[:, :2].sigmoid(), pred[:, 2:4]], 1)
    return head.bbox_coder.decode(priors, pred, head.featmap_strides[level])


def _yolox_head(head: nn.Module) -> Head:
    chosen = dict(choose='best', judged='product', inclusive=True)
    return dataclasses.replace(factor_head(int(head.cls_out_channels), 'objectness'), **chosen)


def _yolox_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    strides = priors.new_tensor(head.prior_generator.strides[level]).expand(len(priors), 2)
    return head._bbox_decode(torch.cat([priors, strides], 1), rows['bbox_pred'])


def _yolo_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows['pred_map'][:, 5:].sigmoid(), rows['pred_map'][:, 4].sigmoid()


def _guided_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, None]:
    scores, _ = class_scores(head, dict(list(rows.items())[:2]), priors)
    return torch.where(
        rows['loc_pred'].sigmoid() >= head.loc_filter_thr, scores, -torch.ones_like(scores)
    ), None


def side_of_peaks(test_cfg: Mapping[str, Any]) -> int:
    """Return how many cells a peak is the highest one of, on both axes; ConfigError: an even number."""
    side = positive('local_maximum_kernel', test_cfg.get('local_maximum_kernel'))
    if side % 2 == 0:
        raise ConfigError(f'test_cfg.local_maximum_kernel={side}: expected an odd number')
    return side


def _centre_head(head: nn.Module) -> Head:
    side = side_of_peaks(head.test_cfg)
    return Head(
        (('heatmap', int(head.num_classes)), ('wh', 2), ('offset', 2)),
        scores='heatmap',
        activation='none',
        peaks=side,
        suppresses=False,
        bordered=True,
    )


def _centre_maps(head: nn.Module, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(maps, heatmap=get_local_maximum(maps['heatmap'], head.test_cfg.local_maximum_kernel))


def _centre_boxes(head: nn.Module, level: int, rows: Rows, points: torch.Tensor) -> torch.Tensor:
    """Return the boxes of all cells by `decode_heatmap`, of scores that fall from the first to the last."""
    count, height = len(points), int(points[-1, 1]) // CENTRE_STRIDE + 1
    falling = torch.arange(count, 0, -1, dtype=torch.float32)[None]
    maps = [falling, rows['wh'].T, rows['offset'].T]
    maps = [one.reshape(1, len(one), height, -1).to(points) for one in maps]
    size = [CENTRE_STRIDE * side for side in maps[0].shape[2:]]
    return head.decode_heatmap(*maps, size, k=count, kernel=1)[0][0, :, :4]


def _no(head: nn.Module) -> bool:
    return False


def _yes(head: nn.Module) -> bool:
    return True


OWN: dict[str, Kind] = dict(
    GFLHead=Kind(
        heads.GFLHead,
        _gfl_head,
        lambda head: dict(type='integral', bins=head.reg_max + 1, strides=strides(head)),
        *(_gfl_boxes, clips),
    ),
    TOODHead=Kind(
        heads.TOODHead,
        lambda head: dataclasses.replace(plain_head(head), activation='none'),
        lambda head: dict(type='scaled', strides=strides(head), around_points=False),
        *(_tood_boxes, _no),
        scores=lambda head, rows, priors: (rows['cls_score'], None),
    ),
    RepPointsHead=Kind(
        heads.RepPointsHead,
        plain_head,
        lambda head: dict(type='scaled', strides=list(head.point_strides), around_points=True),
        *(_reppoints_boxes, _yes),
    ),
    FoveaHead=Kind(
        heads.FoveaHead,
        lambda head: dataclasses.replace(plain_head(head), clip_inset=1.0),
        lambda head: dict(type='base_length', lengths=list(head.base_edge_list)),
        *(_fovea_boxes, _yes),
    ),
    PAAHead=Kind(heads.PAAHead, _paa_head, chosen_coder, decoded, clips),
    GuidedAnchorHead=Kind(
        *(heads.GuidedAnchorHead, _guided_head, _guided_coder, _guided_boxes, clips, _guided_scores),
        generator=GUIDED,
    ),
    SABLRetinaHead=Kind(
        *(heads.SABLRetinaHead, _sabl_head, bucket_settings),
        lambda head, level, rows, priors: _sabl_decoded(head, rows, priors)[0],
        clips,
        _sabl_scores,
        generator=GUIDED,
        flat=_sabl_flat,
    ),
    YOLOV3Head=Kind(
        heads.YOLOV3Head,
        _yolo_head,
        lambda head: dict(type='yolo', strides=list(head.featmap_strides)),
        *(_yolo_boxes, _no, _yolo_scores),
        fixed=dict(nms_pre=-1),
    ),
    CenterNetHead=Kind(
        heads.CenterNetHead,
        _centre_head,
        lambda head: dict(type='centre', strides=[CENTRE_STRIDE]),
        *(_centre_boxes, _no),
        scores=lambda head, rows, priors: (rows['heatmap'], None),
        generator=lambda head: MlvlPointGenerator([CENTRE_STRIDE], offset=0.0),
        limit='topk',
        needed=('topk', 'local_maximum_kernel'),
        maps=_centre_maps,
    ),
    YOLOXHead=Kind(
        heads.YOLOXHead,
        _yolox_head,
        lambda head: dict(type='yolox', strides=strides(head)),
        *(_yolox_boxes, _no),
        fixed=dict(nms_pre=-1, max_per_img=-1),
    ),
)
"""Class of mmdet with a decoding of its own -> its kind."""
