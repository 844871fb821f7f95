"""The kinds of dense heads, most of mmdet 2.28.2: their outputs, coders, and boxes by mmdet's own functions.

A detector exports because its head is of a kind. The boxes and scores here are those of mmdet, for the proof.
Source: `models/dense_heads`, the file of each head, and `core/bbox/coder`.

Glossary: B batch, a priors of a cell, A priors of a level, C classes, h, w size of a level's maps.
"""

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmdet.core.anchor.anchor_generator import SSDAnchorGenerator
from mmdet.core.post_processing import bbox_nms
from torch import nn

from mmdeploy_ext.compat.older_priors import DistanceCoder
from mmdeploy_ext.compat.patches_vendored import mmdet_module, mmdet_release
from mmdeploy_ext.contract.dense_head import Head, factor_head
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import number, positive
from mmdeploy_ext.models.rtmdet import RTMDetSepBNHead

heads, coders = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.core.bbox.coder')
MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator
get_local_maximum = mmdet_module('mmdet.models.utils.gaussian_target').get_local_maximum

Rows = 'Mapping[str, torch.Tensor]'
"""Name of an output -> its rows (A, columns) of one level and image."""

CENTERNET_STRIDE = 4
"""Stride of CenterNet's maps behind its own neck, pixels."""
YOLO_UNLIMITED_SINCE = (2, 17)
"""First release of mmdet whose `YOLOV3Head` does not read `nms_pre`; before it the head kept the priors of a
level with the best objectness (compared: 2.6.0, 2.10.0, 2.14.0, 2.16.0 and 2.17.0)."""
GFL_CODER_SINCE = (2, 18)
"""First release of mmdet whose `GFLHead` decodes by its coder (compared: 2.6.0, 2.14.0, 2.17.0, 2.18.0)."""
PAIR_OF_OUTPUTS_SINCE = (2, 18)
"""First release of mmdet whose VFNet and RepPoints return two outputs in a test."""
CLASS_SCORES_SINCE = (2, 10)
"""First release of mmdet whose `multiclass_nms` surely compares class scores with the threshold: that of 2.7
and 2.8 compares their products with the score factors, those of 2.6, 2.9 and 2.10 class scores (compared),
and a copy that calls itself 2.9 may have the code of 2.8."""
FAR_PX = 1e6
"""Offset far from every border, for functions of upstream that always clip; in float64 nothing is lost."""


def compares_products() -> bool:
    """Return whether mmdet's `multiclass_nms` compares scores times their factors with the score threshold.

    Copies of mmdet 2.6 to 2.9 have the function of one release or the other: it is tried.
    """
    if mmdet_release() >= CLASS_SCORES_SINCE:
        return False
    box, scores = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[0.5, 0.0]])
    suppression = dict(type='nms', iou_threshold=0.5)
    results = bbox_nms.multiclass_nms(box, scores, 0.3, suppression, score_factors=scores.new_tensor([0.5]))
    return len(results[0]) == 0


def rows_of(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a map (B, a*columns, h, w) as rows (B, A, columns), in the order of its priors; A is h*w*a."""
    return tensor.permute(0, 2, 3, 1).reshape(tensor.shape[0], -1, columns)


# --- box coders -----------------------------------------------------------------------------------------


def delta(coder: Any) -> dict[str, Any]:
    """Return the settings of a `DeltaXYWHBBoxCoder`, by their names in `contract.dense_head`.

    `coder` is that of a head of mmdet. They are `type`, `means`, `stds`, `wh_ratio_clip` (0.016, the default
    of its `decode`) and, if the coder limits how far centres move along an axis, `ctr_clamp`, that limit in
    pixels.
    """
    clamp = dict(ctr_clamp=coder.ctr_clamp) if coder.add_ctr_clamp else {}
    return dict(type='delta', **_means_and_stds(coder), wh_ratio_clip=0.016, **clamp)


def legacy_delta(coder: Any) -> dict[str, Any]:
    """Return such settings of a `LegacyDeltaXYWHBBoxCoder` of mmdet 1.x, which has no `ctr_clamp`.

    The further entry `pixel`, 1, says that boxes are a pixel larger than their corners are apart.
    """
    return dict(_means_and_stds(coder), wh_ratio_clip=0.016, type='delta', pixel=1.0)


def _means_and_stds(coder: Any) -> dict[str, list[float]]:
    """Return `means` and `stds` of a coder of deltas; ConfigError: one is no list of four numbers."""
    settings = {}
    for name, values in (('means', coder.means), ('stds', coder.stds)):
        settings[name] = list(values) if isinstance(values, Iterable) else []
        if len(settings[name]) != 4 or not all(isinstance(value, numbers.Real) for value in settings[name]):
            raise ConfigError(f'{type(coder).__name__}.target_{name}={values!r}: expected four numbers')
    return settings


CODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    coders.DeltaXYWHBBoxCoder: delta,
    coders.LegacyDeltaXYWHBBoxCoder: legacy_delta,
    coders.TBLRBBoxCoder: lambda coder: dict(type='tblr', normalizer=coder.normalizer),
    coders.DistancePointBBoxCoder: lambda coder: dict(type='distance'),
    DistanceCoder: lambda coder: dict(type='distance'),
}
"""Class of a coder that a config may choose -> function that returns the settings of such a coder."""


def chosen_coder(head: nn.Module, key: str = 'model.bbox_head') -> dict[str, Any]:
    """Return the settings of the coder that the config chose; ConfigError names the head by its `key`.

    They are `type`, its name in `box_coders.CODERS`, and what that coder reads, such as `means` and `stds`.
    A coder of the user that is derived from one of `CODERS` counts as it; a proof names what it overrides.
    """
    for coder_class, settings in CODERS.items():
        if isinstance(head.bbox_coder, coder_class):
            return settings(head.bbox_coder)
    exported = ', '.join(coder_class.__name__ for coder_class in CODERS)
    raise ConfigError(f'{key}.bbox_coder is {type(head.bbox_coder).__name__}; expected {exported}')


def bucket_settings(head: nn.Module) -> dict[str, Any]:
    """Return `type`, `buckets`, `num_buckets` and `scale_factor` of the coder of a side-aware head.

    The head is one of priors or of regions. `num_buckets` is their number along an axis, `buckets` the number
    of those in which a side may be; a proposal is enlarged by `scale_factor` before it is divided into them.
    """
    coder = head.bbox_coder
    return dict(
        type='bucket',
        buckets=head.side_num,
        num_buckets=coder.num_buckets,
        scale_factor=coder.scale_factor,
    )


def clips(head: nn.Module) -> bool:
    """Return whether the head's own box coder clips boxes to the image; that of mmdet 1.x always does."""
    return getattr(head.bbox_coder, 'clip_border', True)


def border_inset(head: nn.Module) -> float:
    """Return how many pixels before the right and the bottom border clipped boxes end.

    It is 1 for the coder of mmdet 1.x, and 0 for all others.
    """
    return float(isinstance(head.bbox_coder, coders.LegacyDeltaXYWHBBoxCoder))


# --- heads ----------------------------------------------------------------------------------------------


def plain_head(head: nn.Module) -> Head:
    """Return the description of a head that outputs `cls_score`, and `bbox_pred` of 4 columns, alone."""
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4))
    return Head(outputs, clip_inset=border_inset(head), **_scores_and_sizes(head, head.prior_generator))


def _scores_and_sizes(head: nn.Module, generator: Any) -> dict[str, Any]:
    """Return the fields `activation` and `maps_by_stride` of `Head`; SSD's maps do not follow strides."""
    activation = 'sigmoid' if head.use_sigmoid_cls else 'softmax'
    return dict(activation=activation, maps_by_stride=not isinstance(generator, SSDAnchorGenerator))


def class_scores(head: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Return the class scores (A, C) in 0..1 of class logits (A, C), or (A, C + 1) of a head with softmax.

    The last of C + 1 is the background, which is left out.
    """
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def strides(head: nn.Module) -> list[int]:
    """Return the stride of each level along x, pixels."""
    return [int(stride[0]) for stride in head.prior_generator.strides]


class HeadKind:
    """One kind of head; this one decodes by `BaseDenseHead.get_bboxes` and the box coder of the config.

    Subclasses override the methods whose results differ for their heads; arguments and results are the same.
    Its methods take a live head of mmdet of this kind. `rows` are name of an output -> its rows
    (A, columns), `priors` (A, 4) xyxy or (A, 2) points in pixels; both are of one level and one image, and
    `level` is its index.

    Attributes:
        upstream: the class whose methods the graphs repeat.
        choose_before_pairs: value of `Head.choose` (`contract/dense_head.py`) for an mmdet whose heads kept
            priors in place of pairs.
        factor: name of a third output, the logits of a score factor; '' without one.
        has_generator: whether upstream's head has a generator of priors.
        fixed: entries of `test_cfg` that upstream's `get_bboxes` does not read -> the values by which it
            behaves.
        limit: entry of `test_cfg` that limits the detections of an image.
        needed: entries of `test_cfg` that upstream's `get_bboxes` reads without a default.
        unlimited: whether -1 of that limit keeps all detections; else upstream leaves out the last one, and
            of a `topk` it fails.
    """

    choose_before_pairs: ClassVar[str] = 'priors'
    has_generator: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, int]] = {}
    limit: ClassVar[str] = 'max_per_img'
    needed: ClassVar[tuple[str, ...]] = ('score_thr', 'nms', 'max_per_img')
    unlimited: ClassVar[bool] = False

    def __init__(self, upstream: type, factor: str = '') -> None:
        self.upstream, self.factor = upstream, factor

    def describe(self, head: nn.Module) -> Head:
        """Return the outputs of a head, and how they become candidates.

        ConfigError: a setting of the head with which its kind is not exported.
        """
        if not self.factor:
            return plain_head(head)
        description = factor_head(int(head.cls_out_channels), self.factor)
        return dataclasses.replace(description, **_scores_and_sizes(head, head.prior_generator))

    def coder(self, head: nn.Module) -> dict[str, Any]:
        """Return the coder's settings, as `runtime/box_coders.py` reads them.

        ConfigError: it is no coder that heads of this kind are exported with.
        """
        return chosen_coder(head)

    def clips(self, head: nn.Module) -> bool:
        """Return whether boxes are clipped to the image."""
        return clips(head)

    def generator(self, head: nn.Module) -> Any:
        """Return the generator of a head's priors, made here if `has_generator` is False."""
        return head.prior_generator

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        """Return what mmdet 2.28 has as outputs of `forward` in a test; other versions may have others."""
        return outputs

    def flatten(self, outputs: Any) -> list[torch.Tensor]:
        """Return the outputs of `tested`, output by output and level by level."""
        return [level for levels in outputs for level in levels]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        """Return what `forward` of the head returns, of the maps that `flatten` gives.

        None: an older mmdet returns other outputs, of which these maps are made.
        """
        count = len(self.describe(head).outputs)
        levels = len(maps) // count
        return tuple(list(maps[index * levels : (index + 1) * levels]) for index in range(count))

    def maps(self, head: nn.Module, maps: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the outputs (B, a*columns, h, w) of one level by name as they are before they are decoded.

        Functions of upstream change them, e.g. keep the peaks of a heatmap; here they stay.
        """
        return maps

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        """Return boxes (A, 4) xyxy in pixels, not clipped, by upstream's functions."""
        return head.bbox_coder.decode(priors, rows['bbox_pred'])

    def scores(
        self, head: nn.Module, rows: Rows, priors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return class scores (A, C) and score factors (A,), by PyTorch and upstream's functions.

        Both are in 0..1, no logits. None stands for the factors of a kind without any.
        """
        factors = rows[self.factor][:, 0].sigmoid() if self.factor else None
        return class_scores(head, rows['cls_score']), factors


# --- heads with a `_get_bboxes_single` of their own -----------------------------------------------------


def _refuse_softmax(head: nn.Module, upstream: type) -> None:
    """Refuse (ConfigError) a head for softmax whose `get_bboxes` takes sigmoids, also of the background."""
    if not head.use_sigmoid_cls:
        raise ConfigError(
            f'model.bbox_head.loss_cls.use_sigmoid=False: {upstream.__name__} takes sigmoids all the same, '
            f'also of the background; expected True'
        )


class GflKind(HeadKind):
    """`GFLHead`: boxes are means of distributions."""

    def describe(self, head: nn.Module) -> Head:
        _refuse_softmax(head, self.upstream)
        return Head((('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4 * (head.reg_max + 1))))

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='integral', bins=head.reg_max + 1, strides=strides(head))

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        sides = head.integral(rows['bbox_pred']) * head.prior_generator.strides[level][0]
        coder = head.bbox_coder if mmdet_release() >= GFL_CODER_SINCE else DistanceCoder()
        return coder.decode(head.anchor_center(priors), sides)


class GFocalKind(GflKind):
    """`GFocalHead` of the second version of GFL, which repositories have: the network outputs scores.

    If its loss has no sigmoid the network has a column behind those of the classes, which no label stands
    for: detections of it are dropped in the end, and a trained network has scores near 0 there. The graph
    leaves it out from the start.
    """

    def describe(self, head: nn.Module) -> Head:
        outputs = (('cls_score', int(head.num_classes)), ('bbox_pred', 4 * (head.reg_max + 1)))
        return Head(outputs, activation='none')

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        scores, boxes = outputs
        return [level[:, : head.num_classes] for level in scores], boxes

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        scores, boxes = super().unflatten(head, maps)
        further = int(head.cls_out_channels) - int(head.num_classes)  # no label stands for it
        return [torch.nn.functional.pad(level, (0, 0, 0, 0, 0, further)) for level in scores], boxes

    def scores(self, head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, None]:
        return rows['cls_score'], None


class VfnetKind(HeadKind):
    """`VFNetHead`, which before mmdet 2.18 had the boxes before their refinement as an output, too."""

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        return outputs[0], outputs[-1]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        return super().unflatten(head, maps) if mmdet_release() >= PAIR_OF_OUTPUTS_SINCE else None


class ToodKind(HeadKind):
    """`TOODHead`: the network outputs scores, and boxes in strides.

    In its own repository, and so before mmdet had it, boxes are clipped to the image by a function of mmdet.
    """

    def describe(self, head: nn.Module) -> Head:
        return dataclasses.replace(plain_head(head), activation='none')

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='scaled', strides=strides(head), around_points=False)

    def clips(self, head: nn.Module) -> bool:
        return 'bbox_limited' in inspect.unwrap(head._get_bboxes_single).__code__.co_names

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        return rows['bbox_pred'] * head.prior_generator.strides[level][0]

    def scores(self, head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, None]:
        return rows['cls_score'], None


class RepPointsKind(HeadKind):
    """`RepPointsHead`: boxes around points, in strides.

    Before mmdet 2.18 its outputs were points, twice, of which `get_bboxes` made boxes.
    """

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        if len(outputs) == 2:
            return outputs
        scores, _, points = outputs
        return scores, [head.points2bbox(level) for level in points]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        return super().unflatten(head, maps) if mmdet_release() >= PAIR_OF_OUTPUTS_SINCE else None

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='scaled', strides=list(head.point_strides), around_points=True)

    def clips(self, head: nn.Module) -> bool:
        return True

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        return _unclipped(head, rows, priors, head.point_strides[level])


class FoveaKind(HeadKind):
    """`FoveaHead`: logarithms of distances over a length per level."""

    def describe(self, head: nn.Module) -> Head:
        _refuse_softmax(head, self.upstream)
        return dataclasses.replace(plain_head(head), clip_inset=1.0)

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='base_length', lengths=list(head.base_edge_list))

    def clips(self, head: nn.Module) -> bool:
        return True

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        return _unclipped(head, rows, priors, head.base_edge_list[level])


def _unclipped(head: nn.Module, rows: Rows, points: torch.Tensor, level_size: float) -> torch.Tensor:
    """Return boxes by a `_bbox_decode` that always clips: in float64, far from every border."""
    border = (2 * FAR_PX, 2 * FAR_PX)
    boxes = head._bbox_decode(points.double() + FAR_PX, rows['bbox_pred'].double(), level_size, border)
    return (boxes - FAR_PX).float()


# --- heads with a `get_bboxes` of their own -------------------------------------------------------------


class PaaKind(HeadKind):
    """`PAAHead`: candidates are ranked by the root of score times predicted IoU; their boxes may vote."""

    unlimited = True

    def describe(self, head: nn.Module) -> Head:
        _refuse_softmax(head, self.upstream)
        description = factor_head(int(head.cls_out_channels), self.factor)
        votes = bool(head.with_score_voting)
        return dataclasses.replace(description, root=True, choose='priors', judged='product', votes=votes)


class GuidedKind(HeadKind):
    """`GuidedAnchorHead`: the network outputs the sizes of anchors, and the cells that have some.

    The class scores of all other cells are -1.
    """

    unlimited = True

    def describe(self, head: nn.Module) -> Head:
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
            **_scores_and_sizes(head, head.square_anchor_generator),
        )

    def coder(self, head: nn.Module) -> dict[str, Any]:
        for name in ('anchor_coder', 'bbox_coder'):
            if not isinstance(coder := getattr(head, name), coders.DeltaXYWHBBoxCoder):
                raise ConfigError(
                    f'{type(head).__name__}: {name} is {type(coder).__name__}; expected DeltaXYWHBBoxCoder'
                )
        anchors = dict(delta(head.anchor_coder), wh_ratio_clip=1e-6)
        return dict(delta(head.bbox_coder), type='guided', anchor_coder=anchors)

    def generator(self, head: nn.Module) -> Any:
        return head.square_anchor_generator

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        deltas = torch.cat([torch.zeros_like(rows['shape_pred']), rows['shape_pred']], 1)
        anchors = head.anchor_coder.decode(priors, deltas, wh_ratio_clip=1e-6)
        return head.bbox_coder.decode(anchors, rows['bbox_pred'])

    def scores(self, head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, None]:
        scores = class_scores(head, rows['cls_score'])
        visible = rows['loc_pred'].sigmoid() >= head.loc_filter_thr
        return torch.where(visible, scores, -torch.ones_like(scores)), None


class SablKind(HeadKind):
    """`SABLRetinaHead`: each side of a box lies in a bucket; the coder returns score factors, too."""

    choose_before_pairs = 'class_priors'

    def describe(self, head: nn.Module) -> Head:
        columns = 4 * head.side_num
        outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_cls', columns), ('bbox_reg', columns))
        fields = _scores_and_sizes(head, head.square_anchor_generator)
        return Head(outputs, factor='confidence', clip_inset=1.0, **fields)

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return bucket_settings(head)

    def generator(self, head: nn.Module) -> Any:
        return head.square_anchor_generator

    def flatten(self, outputs: Any) -> list[torch.Tensor]:
        scores, buckets = outputs
        return [*scores, *(logits for logits, _ in buckets), *(offsets for _, offsets in buckets)]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        scores, logits, offsets = super().unflatten(head, maps)
        return scores, list(zip(logits, offsets, strict=True))

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        return self.boxes_and_factors(head, rows, priors)[0]

    def scores(self, head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return class_scores(head, rows['cls_score']), self.boxes_and_factors(head, rows, priors)[1]

    def boxes_and_factors(
        self, head: nn.Module, rows: Rows, priors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes (A, 4) as `boxes` does, and their confidences 0..1 (A,), the score factors."""
        return head.bbox_coder.decode(priors, [rows['bbox_cls'].contiguous(), rows['bbox_reg'].contiguous()])


class YoloKind(HeadKind):
    """`YOLOV3Head`: one output with the place, the size, the objectness and the classes of a box."""

    unlimited = True

    @property
    def fixed(self) -> Mapping[str, int]:
        return {} if self._limits_priors() else dict(nms_pre=-1)

    def _limits_priors(self) -> bool:
        return mmdet_release() < YOLO_UNLIMITED_SINCE

    def describe(self, head: nn.Module) -> Head:
        return Head(
            (('pred_map', int(head.num_attrib)),),
            scores='pred_map',
            first_class=5,
            factor='objectness',
            factor_from=('pred_map', 4),
            choose='factor_priors' if self._limits_priors() else 'all',
            conf_thr=number('conf_thr', head.test_cfg.get('conf_thr', -1), float),
        )

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='yolo', strides=list(head.featmap_strides))

    def clips(self, head: nn.Module) -> bool:
        return False

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        pred = rows['pred_map']
        pred = torch.cat([pred[:, :2].sigmoid(), pred[:, 2:4]], 1)
        return head.bbox_coder.decode(priors, pred, head.featmap_strides[level])

    def scores(self, head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows['pred_map'][:, 5:].sigmoid(), rows['pred_map'][:, 4].sigmoid()


class YoloxKind(HeadKind):
    """`YOLOXHead`: each prior has its best class, without a limit of candidates or results."""

    fixed: ClassVar[Mapping[str, int]] = dict(nms_pre=-1, max_per_img=-1)
    needed, unlimited = ('score_thr', 'nms'), True

    def describe(self, head: nn.Module) -> Head:
        description = factor_head(int(head.cls_out_channels), self.factor)
        return dataclasses.replace(description, choose='best', judged='product', inclusive=True)

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='yolox', strides=strides(head))

    def clips(self, head: nn.Module) -> bool:
        return False

    def boxes(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        level_strides = priors.new_tensor(head.prior_generator.strides[level]).expand(len(priors), 2)
        return head._bbox_decode(torch.cat([priors, level_strides], 1), rows['bbox_pred'])


def peak_window(test_cfg: Mapping[str, Any]) -> int:
    """Return `local_maximum_kernel`: the side of the square, in cells, of which a peak is the highest.

    ConfigError: it is missing, or no odd whole number above 0.
    """
    side = positive('local_maximum_kernel', test_cfg.get('local_maximum_kernel'))
    if side % 2 == 0:
        raise ConfigError(f'test_cfg.local_maximum_kernel={side}: expected an odd number')
    return side


class CenterNetKind(HeadKind):
    """`CenterNetHead`: boxes around peaks of a heatmap, without a suppression."""

    has_generator = False
    limit = 'topk'
    needed = ('topk', 'local_maximum_kernel')

    def describe(self, head: nn.Module) -> Head:
        return Head(
            (('heatmap', int(head.num_classes)), ('wh', 2), ('offset', 2)),
            scores='heatmap',
            activation='none',
            peaks=peak_window(head.test_cfg),
            suppresses=False,
            bordered=True,
        )

    def coder(self, head: nn.Module) -> dict[str, Any]:
        return dict(type='centre', strides=[CENTERNET_STRIDE])

    def clips(self, head: nn.Module) -> bool:
        return False

    def generator(self, head: nn.Module) -> Any:
        return MlvlPointGenerator([CENTERNET_STRIDE], offset=0.0)

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        """Return what `forward` of the head returns, of the maps that `flatten` gives.

        None: an older mmdet returns other outputs, of which these maps are made.
        """
        count = len(self.describe(head).outputs)
        levels = len(maps) // count
        return tuple(list(maps[index * levels : (index + 1) * levels]) for index in range(count))

    def maps(self, head: nn.Module, maps: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return dict(maps, heatmap=get_local_maximum(maps['heatmap'], head.test_cfg.local_maximum_kernel))

    def boxes(self, head: nn.Module, level: int, rows: Rows, points: torch.Tensor) -> torch.Tensor:
        """Return the boxes of all cells, in order, by `decode_heatmap`.

        It takes boxes by their scores, which are made up here: they fall from cell to cell.
        """
        num_cells, height = len(points), int(points[-1, 1]) // CENTERNET_STRIDE + 1
        falling = torch.arange(num_cells, 0, -1, dtype=torch.float32)[None]
        channels = [falling, rows['wh'].T, rows['offset'].T]
        maps = [values.reshape(1, len(values), height, -1).to(points) for values in channels]
        size = [CENTERNET_STRIDE * side for side in maps[0].shape[2:]]
        return head.decode_heatmap(*maps, size, k=num_cells, kernel=1)[0][0, :, :4]

    def scores(self, head: nn.Module, rows: Rows, priors: torch.Tensor) -> tuple[torch.Tensor, None]:
        return rows['heatmap'], None


KINDS: dict[str, HeadKind] = dict(
    AnchorHead=HeadKind(heads.AnchorHead),
    AnchorFreeHead=HeadKind(heads.AnchorFreeHead),
    ATSSHead=HeadKind(heads.ATSSHead, 'centerness'),
    FCOSHead=HeadKind(heads.FCOSHead, 'centerness'),
    AutoAssignHead=HeadKind(heads.AutoAssignHead, 'objectness'),
    DDODHead=HeadKind(heads.DDODHead, 'iou_pred'),
    VFNetHead=VfnetKind(heads.VFNetHead),
    RTMDetSepBNHead=HeadKind(RTMDetSepBNHead),
    GFLHead=GflKind(heads.GFLHead),
    GFocalHead=GFocalKind(heads.GFLHead),
    TOODHead=ToodKind(heads.TOODHead),
    RepPointsHead=RepPointsKind(heads.RepPointsHead),
    FoveaHead=FoveaKind(heads.FoveaHead),
    PAAHead=PaaKind(heads.PAAHead, 'iou_pred'),
    GuidedAnchorHead=GuidedKind(heads.GuidedAnchorHead),
    SABLRetinaHead=SablKind(heads.SABLRetinaHead),
    YOLOV3Head=YoloKind(heads.YOLOV3Head),
    CenterNetHead=CenterNetKind(heads.CenterNetHead),
    YOLOXHead=YoloxKind(heads.YOLOXHead, 'objectness'),
)
"""Name of a head's class, of mmdet 2.28 or 3 or of a repository -> its kind; a subclass is of the same
kind."""
