"""The kinds of dense heads of mmdet 2.28.2: their outputs, their coders, and boxes by mmdet's own functions.

A detector exports because its head is of a kind. The boxes and scores here are those of mmdet, for the proof.
Source: `models/dense_heads`, the file of each head, and `core/bbox/coder`.

Glossary: B batch, A priors of a level, C classes, h, w size of a level's maps.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet.core.anchor.anchor_generator import SSDAnchorGenerator
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.dense_head import Head, factor_head
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import positive
from mmdeploy_ext.exporting.same_bytes import SameBytes
from mmdeploy_ext.models.rtmdet.head import RTMDetSepBNHead

heads, coders = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.core.bbox.coder')
MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator
get_local_maximum = mmdet_module('mmdet.models.utils.gaussian_target').get_local_maximum

Rows = 'Mapping[str, torch.Tensor]'
"""Name of an output -> its rows (A, columns) of one level and image."""

SQUARE_ANCHORS = 'square_anchor_generator'
"""Attribute with the priors of heads of guided anchors, and of SABL's."""
CENTERNET_STRIDE = 4
"""Stride of CenterNet's maps behind its own neck, pixels."""
FAR_PX = 1e6
"""Offset far from every border, for functions of upstream that always clip; in float64 nothing is lost."""


def rows_of(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a map (B, a*columns, h, w) as rows (B, h*w*a, columns), in the order of its priors."""
    return tensor.permute(0, 2, 3, 1).reshape(tensor.shape[0], -1, columns)


def same_priors(generator: Any) -> Any:
    """Return a generator of priors whose numbers are the same bytes on every machine."""
    priors = copy.copy(generator)
    if hasattr(priors, 'base_anchors'):
        with SameBytes():  # roots of the ratios
            priors.base_anchors = priors.gen_base_anchors()
    return priors


def _flatten_outputs(outputs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [level for levels in outputs for level in levels]


def class_scores(head: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Return the class scores (A, C) of class logits, without the background."""
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def scores_and_factors(
    head: nn.Module, rows: Rows, priors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scores as `BaseDenseHead` does: the third output, if there is one, is the factor."""
    logits, _, *factor_logits = rows.values()
    factors = factor_logits[0][:, 0].sigmoid() if factor_logits else None
    return class_scores(head, logits), factors


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One kind of head; every function takes the head of upstream first.

    Attributes:
        upstream: the class whose methods the graphs repeat.
        head: returns what it outputs, and how that becomes candidates.
        coder: returns the coder's settings, as `families/parts/runtime/box_coders.py` reads them.
        boxes: (head, level, rows of one image, priors) -> boxes (A, 4), not clipped, by upstream's functions.
        clips: returns whether boxes are clipped to the image.
        scores: (head, rows of one image, priors) -> class scores (A, C) and score factors (A,) or None, by
            PyTorch and functions of upstream.
        generator: attribute with the generator of the priors, or a function that returns it.
        flatten: outputs of `forward` -> tensors, output by output and level by level.
        fixed: entries of `test_cfg` that its `get_bboxes` does not read -> what it does instead.
        limit: entry of `test_cfg` that limits the detections of an image.
        needed: entries of `test_cfg` that it reads without a default.
        maps: (head, outputs of one level by name) -> the same as its decoding reads them, by functions of
            upstream.
    """

    upstream: type
    head: Callable[[nn.Module], Head]
    coder: Callable[[nn.Module], dict[str, Any]]
    boxes: Callable[..., torch.Tensor]
    clips: Callable[[nn.Module], bool]
    scores: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = scores_and_factors
    generator: str | Callable[[nn.Module], Any] = 'prior_generator'
    flatten: Callable[[Any], list[torch.Tensor]] = _flatten_outputs
    fixed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    limit: str = 'max_per_img'
    needed: Sequence[str] = ('score_thr', 'nms', 'max_per_img')
    maps: Callable[..., Mapping[str, torch.Tensor]] = lambda head, maps: maps


# --- heads that decode by `BaseDenseHead.get_bboxes` and a box coder ------------------------------------


def delta(coder: Any) -> dict[str, Any]:
    """Return the settings of a `DeltaXYWHBBoxCoder`."""
    clamp = dict(ctr_clamp=coder.ctr_clamp) if coder.add_ctr_clamp else {}
    return dict(type='delta', means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=0.016, **clamp)


def _legacy_delta(coder: Any) -> dict[str, Any]:
    settings = dict(means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=0.016)
    return dict(settings, type='delta', pixel=1.0)


CODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    coders.DeltaXYWHBBoxCoder: delta,
    coders.LegacyDeltaXYWHBBoxCoder: _legacy_delta,
    coders.TBLRBBoxCoder: lambda coder: dict(type='tblr', normalizer=coder.normalizer),
    coders.DistancePointBBoxCoder: lambda coder: dict(type='distance'),
}
"""Coders that any head may have -> their settings."""


def chosen_coder(head: nn.Module, key: str = 'model.bbox_head') -> dict[str, Any]:
    """Return the settings of the coder that the config chose; ConfigError names the head by its `key`."""
    for coder_class, settings in CODERS.items():
        if type(head.bbox_coder) is coder_class:
            return settings(head.bbox_coder)
    exported = ', '.join(coder_class.__name__ for coder_class in CODERS)
    raise ConfigError(f'{key}.bbox_coder is {type(head.bbox_coder).__name__}; expected {exported}')


def clips(head: nn.Module) -> bool:
    """Return whether the head's own box coder clips; that of mmdet 1.x always does."""
    return getattr(head.bbox_coder, 'clip_border', True)


def never_clips(head: nn.Module) -> bool:
    """Return False: upstream's function leaves boxes outside of the image."""
    return False


def always_clips(head: nn.Module) -> bool:
    """Return True: upstream's function has no option to leave boxes outside of the image."""
    return True


def border_inset(head: nn.Module) -> float:
    """Return how many pixels inside the right and bottom border boxes are clipped; 1 in mmdet 1.x."""
    return float(isinstance(head.bbox_coder, coders.LegacyDeltaXYWHBBoxCoder))


def strides(head: nn.Module) -> list[int]:
    """Return the stride of each level, pixels."""
    return [int(stride[0]) for stride in head.prior_generator.strides]


def _activation_and_sizes(head: nn.Module, generator: str = 'prior_generator') -> dict[str, Any]:
    """Return two fields of `Head`; the sizes of SSD's maps do not follow from its strides."""
    by_stride = not isinstance(getattr(head, generator), SSDAnchorGenerator)
    return dict(activation='sigmoid' if head.use_sigmoid_cls else 'softmax', maps_by_stride=by_stride)


def plain_head(head: nn.Module) -> Head:
    """Return the description of a head that outputs class scores and boxes alone."""
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4))
    return Head(outputs, clip_inset=border_inset(head), **_activation_and_sizes(head))


def _with_factor(factor: str) -> Callable[[nn.Module], Head]:
    """Return what describes heads with a third output, the logits of a score factor."""

    def describe(head: nn.Module) -> Head:
        description = factor_head(int(head.cls_out_channels), factor)
        return dataclasses.replace(description, **_activation_and_sizes(head))

    return describe


def _coder_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    return head.bbox_coder.decode(priors, rows['bbox_pred'])


def _base_kind(upstream: type, head: Callable[[nn.Module], Head] = plain_head) -> HeadKind:
    return HeadKind(upstream, head, chosen_coder, _coder_boxes, clips)


# --- heads with a `_get_bboxes_single` of their own -----------------------------------------------------


def _gfl_head(head: nn.Module) -> Head:
    return Head((('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4 * (head.reg_max + 1))))


def _gfl_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    sides = head.integral(rows['bbox_pred']) * head.prior_generator.strides[level][0]
    return head.bbox_coder.decode(head.anchor_center(priors), sides)


def _tood_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    return rows['bbox_pred'] * head.prior_generator.strides[level][0]


def _unclipped(level_attribute: str) -> Callable[..., torch.Tensor]:
    """Return boxes by a `_bbox_decode` that always clips: in float64, far from every border.

    `level_attribute` is the head's list with the number of each level that the function takes.
    """

    def boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        points, border = priors.double() + FAR_PX, (2 * FAR_PX, 2 * FAR_PX)
        level_size = getattr(head, level_attribute)[level]
        moved = head._bbox_decode(points, rows['bbox_pred'].double(), level_size, border)
        return (moved - FAR_PX).float()

    return boxes


# --- heads with a `get_bboxes` of their own -------------------------------------------------------------


def _paa_head(head: nn.Module) -> Head:
    description = factor_head(int(head.cls_out_channels), 'iou_pred')
    votes = bool(head.with_score_voting)
    return dataclasses.replace(description, root=True, choose='priors', judged='product', votes=votes)


def _guided_head(head: nn.Module) -> Head:
    return Head(
        (
            ('cls_score', int(head.cls_out_channels)),
            ('bbox_pred', 4),
            ('shape_pred', 2),
            ('loc_pred', 1),
        ),
        choose='priors',
        visible='loc_pred',
        visible_thr=float(head.loc_filter_thr),
        **_activation_and_sizes(head, SQUARE_ANCHORS),
    )


def _guided_coder(head: nn.Module) -> dict[str, Any]:
    anchors = dict(delta(head.anchor_coder), wh_ratio_clip=1e-6)
    return dict(delta(head.bbox_coder), type='guided', anchor_coder=anchors)


def _guided_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    deltas = torch.cat([torch.zeros_like(rows['shape_pred']), rows['shape_pred']], 1)
    anchors = head.anchor_coder.decode(priors, deltas, wh_ratio_clip=1e-6)
    return head.bbox_coder.decode(anchors, rows['bbox_pred'])


def _guided_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, None]:
    scores = class_scores(head, rows['cls_score'])
    visible = rows['loc_pred'].sigmoid() >= head.loc_filter_thr
    return torch.where(visible, scores, -torch.ones_like(scores)), None


def _sabl_head(head: nn.Module) -> Head:
    columns = 4 * head.side_num
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_cls', columns), ('bbox_reg', columns))
    return Head(outputs, factor='confidence', clip_inset=1.0, **_activation_and_sizes(head, SQUARE_ANCHORS))


def bucket_settings(head: nn.Module) -> dict[str, Any]:
    """Return the settings of the coder of a side-aware head, of priors or of regions."""
    coder = head.bbox_coder
    return dict(
        type='bucket',
        buckets=head.side_num,
        num_buckets=coder.num_buckets,
        scale_factor=coder.scale_factor,
    )


def _sabl_decoded(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return head.bbox_coder.decode(priors, [rows['bbox_cls'].contiguous(), rows['bbox_reg'].contiguous()])


def _sabl_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    return _sabl_decoded(head, rows, priors)[0]


def _sabl_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return class_scores(head, rows['cls_score']), _sabl_decoded(head, rows, priors)[1]


def _flatten_sabl_outputs(outputs: Any) -> list[torch.Tensor]:
    scores, buckets = outputs
    return [*scores, *(logits for logits, _ in buckets), *(offsets for _, offsets in buckets)]


def _yolo_head(head: nn.Module) -> Head:
    return Head(
        (('pred_map', int(head.num_attrib)),),
        scores='pred_map',
        first_class=5,
        factor='objectness',
        factor_from=('pred_map', 4),
        choose='all',
        conf_thr=float(head.test_cfg.get('conf_thr', -1)),
    )


def _yolo_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    pred = rows['pred_map']
    pred = torch.cat([pred[:, :2].sigmoid(), pred[:, 2:4]], 1)
    return head.bbox_coder.decode(priors, pred, head.featmap_strides[level])


def _yolo_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows['pred_map'][:, 5:].sigmoid(), rows['pred_map'][:, 4].sigmoid()


def _yolox_head(head: nn.Module) -> Head:
    description = factor_head(int(head.cls_out_channels), 'objectness')
    return dataclasses.replace(description, choose='best', judged='product', inclusive=True)


def _yolox_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    level_strides = priors.new_tensor(head.prior_generator.strides[level]).expand(len(priors), 2)
    return head._bbox_decode(torch.cat([priors, level_strides], 1), rows['bbox_pred'])


def peak_window(test_cfg: Mapping[str, Any]) -> int:
    """Return the side of the square, in cells, of which a peak is the highest; ConfigError: it is even."""
    side = positive('local_maximum_kernel', test_cfg.get('local_maximum_kernel'))
    if side % 2 == 0:
        raise ConfigError(f'test_cfg.local_maximum_kernel={side}: expected an odd number')
    return side


def _centernet_head(head: nn.Module) -> Head:
    return Head(
        (('heatmap', int(head.num_classes)), ('wh', 2), ('offset', 2)),
        scores='heatmap',
        activation='none',
        peaks=peak_window(head.test_cfg),
        suppresses=False,
        bordered=True,
    )


def _centernet_maps(head: nn.Module, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(maps, heatmap=get_local_maximum(maps['heatmap'], head.test_cfg.local_maximum_kernel))


def _centernet_boxes(head: nn.Module, level: int, rows: Rows, points: torch.Tensor) -> torch.Tensor:
    """Return the boxes of all cells by `decode_heatmap`, of scores that fall from the first to the last."""
    num_cells, height = len(points), int(points[-1, 1]) // CENTERNET_STRIDE + 1
    falling = torch.arange(num_cells, 0, -1, dtype=torch.float32)[None]
    channels = [falling, rows['wh'].T, rows['offset'].T]
    maps = [cells.reshape(1, len(cells), height, -1).to(points) for cells in channels]
    size = [CENTERNET_STRIDE * side for side in maps[0].shape[2:]]
    return head.decode_heatmap(*maps, size, k=num_cells, kernel=1)[0][0, :, :4]


KINDS: dict[str, HeadKind] = dict(
    AnchorHead=_base_kind(heads.AnchorHead),
    AnchorFreeHead=_base_kind(heads.AnchorFreeHead),
    ATSSHead=_base_kind(heads.ATSSHead, _with_factor('centerness')),
    FCOSHead=_base_kind(heads.FCOSHead, _with_factor('centerness')),
    AutoAssignHead=_base_kind(heads.AutoAssignHead, _with_factor('objectness')),
    DDODHead=_base_kind(heads.DDODHead, _with_factor('iou_pred')),
    VFNetHead=_base_kind(heads.VFNetHead),
    RTMDetSepBNHead=_base_kind(RTMDetSepBNHead),
    GFLHead=HeadKind(
        heads.GFLHead,
        head=_gfl_head,
        coder=lambda head: dict(type='integral', bins=head.reg_max + 1, strides=strides(head)),
        boxes=_gfl_boxes,
        clips=clips,
    ),
    TOODHead=HeadKind(
        heads.TOODHead,
        head=lambda head: dataclasses.replace(plain_head(head), activation='none'),
        coder=lambda head: dict(type='scaled', strides=strides(head), around_points=False),
        boxes=_tood_boxes,
        clips=never_clips,
        scores=lambda head, rows, priors: (rows['cls_score'], None),
    ),
    RepPointsHead=HeadKind(
        heads.RepPointsHead,
        head=plain_head,
        coder=lambda head: dict(type='scaled', strides=list(head.point_strides), around_points=True),
        boxes=_unclipped('point_strides'),
        clips=always_clips,
    ),
    FoveaHead=HeadKind(
        heads.FoveaHead,
        head=lambda head: dataclasses.replace(plain_head(head), clip_inset=1.0),
        coder=lambda head: dict(type='base_length', lengths=list(head.base_edge_list)),
        boxes=_unclipped('base_edge_list'),
        clips=always_clips,
    ),
    PAAHead=_base_kind(heads.PAAHead, _paa_head),
    GuidedAnchorHead=HeadKind(
        heads.GuidedAnchorHead,
        head=_guided_head,
        coder=_guided_coder,
        boxes=_guided_boxes,
        clips=clips,
        scores=_guided_scores,
        generator=SQUARE_ANCHORS,
    ),
    SABLRetinaHead=HeadKind(
        heads.SABLRetinaHead,
        head=_sabl_head,
        coder=bucket_settings,
        boxes=_sabl_boxes,
        clips=clips,
        scores=_sabl_scores,
        generator=SQUARE_ANCHORS,
        flatten=_flatten_sabl_outputs,
    ),
    YOLOV3Head=HeadKind(
        heads.YOLOV3Head,
        head=_yolo_head,
        coder=lambda head: dict(type='yolo', strides=list(head.featmap_strides)),
        boxes=_yolo_boxes,
        clips=never_clips,
        scores=_yolo_scores,
        fixed=dict(nms_pre=-1),
    ),
    CenterNetHead=HeadKind(
        heads.CenterNetHead,
        head=_centernet_head,
        coder=lambda head: dict(type='centre', strides=[CENTERNET_STRIDE]),
        boxes=_centernet_boxes,
        clips=never_clips,
        scores=lambda head, rows, priors: (rows['heatmap'], None),
        generator=lambda head: MlvlPointGenerator([CENTERNET_STRIDE], offset=0.0),
        limit='topk',
        needed=('topk', 'local_maximum_kernel'),
        maps=_centernet_maps,
    ),
    YOLOXHead=HeadKind(
        heads.YOLOXHead,
        head=_yolox_head,
        coder=lambda head: dict(type='yolox', strides=strides(head)),
        boxes=_yolox_boxes,
        clips=never_clips,
        fixed=dict(nms_pre=-1, max_per_img=-1),
    ),
)
"""Class of mmdet, or of mmdet 3 -> its kind; a subclass is of the same kind."""
