"""The kinds of dense heads: what each class of mmdet 2.28.2 gives, and by which of its methods.

A detector exports because its head is of a kind; a head that overrides the methods below is not. What is only
of one kind stands in its entry of `KINDS`: what it outputs, its coder, and the boxes as mmdet's own functions
give them, for the proof.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from mmdet.core.anchor.anchor_generator import SSDAnchorGenerator
from mmdet.core.anchor.point_generator import MlvlPointGenerator
from mmdet.core.bbox import coder as coders
from mmdet.models import dense_heads as heads

from mmdeploy_ext.contract.dense_head import Head, factor_head
from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

QUERIES = heads.DETRHead
"""Heads of queries: dense ones by inheritance alone; they have no priors."""
METHODS = ('get_bboxes', '_get_bboxes_single', '_bbox_post_process', '_bboxes_nms', '_bbox_decode')
"""Methods of upstream that the graphs repeat."""
UNCLIPPED = 1e6
"""Far from every border, for functions of upstream that always clip; in float64 nothing is lost."""

Rows = 'Mapping[str, torch.Tensor]'


def _flat(outputs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for kind in outputs for tensor in kind]


def _scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scores as `BaseDenseHead` does: the third output, where there is one, is the factor."""
    logits, _, *factor = rows.values()
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
    return scores, factor[0][:, 0].sigmoid() if factor else None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of head; every function takes the head of upstream first.

    Attributes:
        upstream: the class whose `METHODS` the graphs repeat.
        head: returns what it outputs, and how that becomes candidates.
        coder: returns the coder's settings, as `runtime/dense/coders.py` reads them.
        boxes: (head, level, rows of one image, priors) -> boxes (A, 4), not clipped, by upstream's functions.
        clips: returns whether boxes are clipped to the image.
        scores: (head, rows of one image, priors) -> class scores (A, C) and score factors (A,) or None, by
            PyTorch and functions of upstream.
        generator: attribute with the priors.
        flat: outputs of `forward` -> tensors, kind by kind.
        fixed: entries of `test_cfg` that its `get_bboxes` does not look at -> what it does instead.
    """

    upstream: type
    head: Callable[[nn.Module], Head]
    coder: Callable[[nn.Module], dict[str, Any]]
    boxes: Callable[..., torch.Tensor]
    clips: Callable[[nn.Module], bool]
    scores: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = _scores
    generator: str = 'prior_generator'
    flat: Callable[[Any], list[torch.Tensor]] = _flat
    fixed: Mapping[str, int] = dataclasses.field(default_factory=dict)


def kind_of(head: nn.Module) -> Kind:
    """Return the kind of a head.

    Raises:
        ConfigError: it is of none, or overrides a method that the graphs repeat; names the method.
    """
    known = [KINDS[name] for name in (one.__name__ for one in type(head).__mro__) if name in KINDS]
    if not known:
        raise ConfigError(f'{type(head).__name__}: no kind of dense head that is exported')
    kind = known[0]
    for name in METHODS:
        if getattr(type(head), name, None) is not getattr(kind.upstream, name, None):
            raise ConfigError(
                f'{type(head).__name__} has a {name}() of its own, which the graphs do not repeat; expected '
                f'that of {kind.upstream.__name__}'
            )
    return kind


def generator_of(head: nn.Module) -> Any:
    """Return what makes the priors of a head."""
    return getattr(head, kind_of(head).generator)


def base_priors(head: nn.Module) -> list[list[list[float]]]:
    """Return the priors of the first cell of each level: anchors xyxy or points x, y; pixels."""
    generator = generator_of(head)
    if isinstance(generator, MlvlPointGenerator):
        return [[[side * generator.offset for side in stride]] for stride in generator.strides]
    return [base.tolist() for base in generator.base_anchors]


INVERTED = ('tblr', 'distance', 'scaled', 'bucket')
"""Coders whose boxes may end before they begin; those of the others have sizes that are no less than zero."""


def described(head: nn.Module) -> Head:
    """Return what a head outputs, and how that becomes candidates."""
    kind = kind_of(head)
    return dataclasses.replace(kind.head(head), inverted=kind.coder(head)['type'] in INVERTED)


def facts_of(head: nn.Module) -> dict[str, Any]:
    """Return what is known of a head, besides thresholds: see `runtime/dense`."""
    kind = kind_of(head)
    coder = kind.coder(head)  # refuses those that are not known, which may have no borders
    return dict(
        clip_border=bool(kind.clips(head)),
        strides=[int(stride[0]) for stride in generator_of(head).strides],
        base_anchors=base_priors(head),
        coder=coder,
        num_classes=int(head.num_classes),
        head=_plain(described(head).to_json()),
    )


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


# --- the coders of mmdet ------------------------------------------------------------------------------


def _delta(coder: Any) -> dict[str, Any]:
    clamp = dict(ctr_clamp=coder.ctr_clamp) if coder.add_ctr_clamp else {}
    return dict(type='delta', means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=0.016, **clamp)


CODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    coders.DeltaXYWHBBoxCoder: _delta,
    coders.TBLRBBoxCoder: lambda coder: dict(type='tblr', normalizer=coder.normalizer),
    coders.DistancePointBBoxCoder: lambda coder: dict(type='distance'),
}
"""Coders that any head may have -> their settings."""


def _own_coder(head: nn.Module) -> dict[str, Any]:
    """Return the settings of the coder that the config chose."""
    for kind, settings in CODERS.items():
        if type(head.bbox_coder) is kind:
            return settings(head.bbox_coder)
    known = ', '.join(kind.__name__ for kind in CODERS)
    raise ConfigError(f'model.bbox_head.bbox_coder is {type(head.bbox_coder).__name__}; expected {known}')


def _strides(head: nn.Module) -> list[int]:
    return [int(stride[0]) for stride in generator_of(head).strides]


# --- `BaseDenseHead.get_bboxes` as it is --------------------------------------------------------------


def _scored(head: nn.Module) -> dict[str, Any]:
    """Return how class scores are made: sigmoid, or softmax with the background last."""
    by_stride = not isinstance(generator_of(head), SSDAnchorGenerator)
    return dict(activation='sigmoid' if head.use_sigmoid_cls else 'softmax', maps_by_stride=by_stride)


def _plain_head(head: nn.Module) -> Head:
    return Head((('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4)), **_scored(head))


def _with_factor(factor: str) -> Callable[[nn.Module], Head]:
    return lambda head: dataclasses.replace(factor_head(int(head.cls_out_channels), factor), **_scored(head))


def _decoded(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    return head.bbox_coder.decode(priors, rows['bbox_pred'])


def _clips(head: nn.Module) -> bool:
    return head.bbox_coder.clip_border


def _base(upstream: type, head: Callable[[nn.Module], Head] = _plain_head) -> Kind:
    return Kind(upstream, head, _own_coder, _decoded, _clips)


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
    return Head(outputs, **_scored(head), **chosen)


def _guided_coder(head: nn.Module) -> dict[str, Any]:
    anchors = dict(_delta(head.anchor_coder), wh_ratio_clip=1e-6)
    return dict(_delta(head.bbox_coder), type='guided', anchor_coder=anchors)


def _guided_boxes(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    deltas = torch.cat([torch.zeros_like(rows['shape_pred']), rows['shape_pred']], 1)
    return head.bbox_coder.decode(
        head.anchor_coder.decode(priors, deltas, wh_ratio_clip=1e-6), rows['bbox_pred']
    )


def _sabl_head(head: nn.Module) -> Head:
    sides = 4 * head.side_num
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_cls', sides), ('bbox_reg', sides))
    return Head(outputs, factor='confidence', clip_inset=1.0, **_scored(head))


def _sabl_coder(head: nn.Module) -> dict[str, Any]:
    coder = head.bbox_coder
    buckets = dict(buckets=head.side_num, num_buckets=coder.num_buckets, scale_factor=coder.scale_factor)
    return dict(type='bucket', **buckets)


def _sabl_decoded(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return head.bbox_coder.decode(priors, [rows['bbox_cls'].contiguous(), rows['bbox_reg'].contiguous()])


def _sabl_scores(head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores, _ = _scores(head, dict(list(rows.items())[:2]), priors)
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
    scores, _ = _scores(head, dict(list(rows.items())[:2]), priors)
    return torch.where(
        rows['loc_pred'].sigmoid() >= head.loc_filter_thr, scores, -torch.ones_like(scores)
    ), None


def _no(head: nn.Module) -> bool:
    return False


def _yes(head: nn.Module) -> bool:
    return True


KINDS: dict[str, Kind] = dict(
    AnchorHead=_base(heads.AnchorHead),
    AnchorFreeHead=_base(heads.AnchorFreeHead),
    ATSSHead=_base(heads.ATSSHead, _with_factor('centerness')),
    FCOSHead=_base(heads.FCOSHead, _with_factor('centerness')),
    AutoAssignHead=_base(heads.AutoAssignHead, _with_factor('objectness')),
    DDODHead=_base(heads.DDODHead, _with_factor('iou_pred')),
    VFNetHead=_base(heads.VFNetHead),
    GFLHead=Kind(
        heads.GFLHead,
        _gfl_head,
        lambda head: dict(type='integral', bins=head.reg_max + 1, strides=_strides(head)),
        *(_gfl_boxes, _clips),
    ),
    TOODHead=Kind(
        heads.TOODHead,
        lambda head: dataclasses.replace(_plain_head(head), activation='none'),
        lambda head: dict(type='scaled', strides=_strides(head), around_points=False),
        *(_tood_boxes, _no),
        scores=lambda head, rows, priors: (rows['cls_score'], None),
    ),
    RepPointsHead=Kind(
        heads.RepPointsHead,
        _plain_head,
        lambda head: dict(type='scaled', strides=list(head.point_strides), around_points=True),
        *(_reppoints_boxes, _yes),
    ),
    FoveaHead=Kind(
        heads.FoveaHead,
        lambda head: dataclasses.replace(_plain_head(head), clip_inset=1.0),
        lambda head: dict(type='base_length', lengths=list(head.base_edge_list)),
        *(_fovea_boxes, _yes),
    ),
    PAAHead=Kind(heads.PAAHead, _paa_head, _own_coder, _decoded, _clips),
    GuidedAnchorHead=Kind(
        *(heads.GuidedAnchorHead, _guided_head, _guided_coder, _guided_boxes, _clips, _guided_scores),
        generator='square_anchor_generator',
    ),
    SABLRetinaHead=Kind(
        *(heads.SABLRetinaHead, _sabl_head, _sabl_coder),
        lambda head, level, rows, priors: _sabl_decoded(head, rows, priors)[0],
        _clips,
        _sabl_scores,
        generator='square_anchor_generator',
        flat=_sabl_flat,
    ),
    YOLOV3Head=Kind(
        heads.YOLOV3Head,
        _yolo_head,
        lambda head: dict(type='yolo', strides=list(head.featmap_strides)),
        *(_yolo_boxes, _no, _yolo_scores),
        fixed=dict(nms_pre=-1),
    ),
    YOLOXHead=Kind(
        heads.YOLOXHead,
        _yolox_head,
        lambda head: dict(type='yolox', strides=_strides(head)),
        *(_yolox_boxes, _no),
        fixed=dict(nms_pre=-1, max_per_img=-1),
    ),
)
"""Class of mmdet -> its kind; a subclass that keeps `METHODS` is of the same kind."""
