"""The kinds of dense heads, most of mmdet 2.28.2: outputs, priors and coders.

Source: mmdet 2.28.2 `models/dense_heads`, `core/bbox/coder`.
Glossary: B batch, N rows, a priors of a cell, A priors of a level, C classes, h, w size of a level's maps.
"""

import dataclasses
import difflib
import functools
import inspect
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmdet.core.anchor.anchor_generator import SSDAnchorGenerator
from mmdet.core.post_processing import bbox_nms
from mmdet.models.builder import HEADS
from torch import nn

from mmdeploy_ext.base.config import cfg_options
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import is_users, nearest_base, place_of
from mmdeploy_ext.exporting.postprocess.suppression import nms_config, number, positive
from mmdeploy_ext.families.no_family import copied_class, trial_words
from mmdeploy_ext.runtime import box_coders
from mmdeploy_ext.runtime.box_coders import Coder, Delta
from mmdeploy_ext.runtime.dense_facts import Head, factor_head
from mmdeploy_ext.spec.facts import NmsConfig
from mmdeploy_ext.upstream.compat.older_priors import DistanceCoder, LevelPoints
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

coders = mmdet_module('mmdet.core.bbox.coder')
MlvlPointGenerator = mmdet_module('mmdet.core.anchor.point_generator').MlvlPointGenerator

Moments = tuple[float, float]
"""Mean and standard deviation of a layer's outputs with seeded weights."""
Rows = Mapping[str, torch.Tensor]
"""Name of an output -> its rows (A, columns) of one level and image."""

CENTERNET_STRIDE = 4
"""Stride of CenterNet's maps, pixels."""
FAR_PX = 1e6
"""A border that no box reaches, for code that always clips."""
RESULTS = ('get_bboxes', 'simple_test_rpn', '_get_bboxes', '_get_bboxes_single', '_bbox_post_process')
OWN = '--parts (docs/parts.md), or a family of your own (docs/own-family.md)'


def compares_products() -> bool:
    """Return whether mmdet's `multiclass_nms` thresholds scores times factors."""
    box, scores = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[0.5, 0.0]])
    suppression = dict(type='nms', iou_threshold=0.5)
    results = bbox_nms.multiclass_nms(box, scores, 0.3, suppression, score_factors=scores.new_tensor([0.5]))
    return len(results[0]) == 0


# --- box coders -----------------------------------------------------------------------------------------


def delta(coder: Any) -> Delta:
    settings = {}
    for name, values in (('means', coder.means), ('stds', coder.stds)):
        settings[name] = tuple(values) if isinstance(values, Iterable) else ()
        if len(settings[name]) != 4 or not all(isinstance(value, numbers.Real) for value in settings[name]):
            raise ConfigError(f'{type(coder).__name__}.target_{name}={values!r}: expected four numbers')
    if isinstance(coder, coders.LegacyDeltaXYWHBBoxCoder):
        return Delta(**settings, pixel=1.0)
    return Delta(**settings, ctr_clamp=coder.ctr_clamp if coder.add_ctr_clamp else None)


def known_coder(coder: Any) -> Coder | None:
    """Return the settings of a coder of mmdet or a subclass, or None."""
    if isinstance(coder, coders.DeltaXYWHBBoxCoder | coders.LegacyDeltaXYWHBBoxCoder):
        return delta(coder)
    if isinstance(coder, coders.TBLRBBoxCoder):
        scale = coder.normalizer
        return box_coders.Tblr(normalizer=tuple(scale) if isinstance(scale, Iterable) else scale)
    if isinstance(coder, coders.DistancePointBBoxCoder | DistanceCoder):
        return box_coders.Distance()
    return None


def chosen_coder(head: nn.Module, key: str = 'model.bbox_head') -> Coder:
    """Return the settings of the config's coder; ConfigError names the head by its `key`."""
    coder = known_coder(head.bbox_coder)
    if coder is None:
        trial = cfg_options({f'{key.split()[0]}.bbox_coder.type': 'DeltaXYWHBBoxCoder'})
        raise ConfigError(
            f'{key}.bbox_coder is {type(head.bbox_coder).__name__}; expected DeltaXYWHBBoxCoder, '
            f'LegacyDeltaXYWHBBoxCoder, TBLRBBoxCoder, DistancePointBBoxCoder, or a class derived from one '
            f'({trial} tries the first); else {OWN}'
        )
    return coder


def bucket_settings(head: nn.Module) -> box_coders.Bucket:
    coder = head.bbox_coder
    return box_coders.Bucket(
        buckets=head.side_num, num_buckets=coder.num_buckets, scale_factor=coder.scale_factor
    )


def clips(head: nn.Module) -> bool:
    return bool(getattr(head.bbox_coder, 'clip_border', True))


def border_inset(head: nn.Module) -> float:
    return float(isinstance(head.bbox_coder, coders.LegacyDeltaXYWHBBoxCoder))


# --- seeded weights -------------------------------------------------------------------------------------

BACKGROUND_MEAN = 6.0
"""Mean logit of the background: exp(6) weighs as much as 170 logits around 0."""
UNUSED_MEAN = -20.0
"""Mean logit of an unused column, with scores near 0 as in a trained head."""
PROPOSAL_CLASSES = (-1.0, 1.5)
STRIDES, LOG_STRIDES = (2.0, 0.7), (0.7, 0.4)
"""Moments of side distances in strides, and of their logarithms."""


def has_background(head: nn.Module) -> bool:
    return getattr(head, 'cls_out_channels', None) == head.num_classes + 1


def seeded_proposals(columns: int) -> list[Moments]:
    """Return the moments of a proposal's columns: most of the best anchors are of the finest level.

    Unclipped proposals grow less: some were 4,000 pixels long and 3 wide, and rounding left an IoU of 0.998
    of two engines.
    """
    growth = (0.8, 1.0) if columns == 4 else (0.5, 0.5)
    return [(0.0, 0.4)] * 2 + [growth] * 2 + [(0.0, 0.4)] * (columns - 4)


# --- heads ----------------------------------------------------------------------------------------------


def scores_and_sizes(head: nn.Module, generator: Any) -> dict[str, Any]:
    activation = 'sigmoid' if head.use_sigmoid_cls else 'softmax'
    return dict(activation=activation, maps_by_stride=not isinstance(generator, SSDAnchorGenerator))


def plain_head(head: nn.Module) -> Head:
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4))
    return Head(outputs, clip_inset=border_inset(head), **scores_and_sizes(head, head.prior_generator))


def refuse_softmax(head: nn.Module) -> None:
    if not head.use_sigmoid_cls:
        raise ConfigError(
            f'model.bbox_head.loss_cls.use_sigmoid=False: {type(head).__name__} applies a sigmoid anyway, '
            'even to the background; expected True'
        )


def outputs_taken(head: nn.Module) -> int:
    parameters = list(inspect.signature(head.get_bboxes).parameters.values())
    return sum(parameter.default is parameter.empty for parameter in parameters) - 1


class HeadKind:
    """One kind of head; this one has a generator of priors and the box coder of the config.

    `rows` are name of an output -> (N, columns), `priors` (N, 4) xyxy or (N, 2) points in pixels.

    Attributes:
        factor: third output, logits of a score factor, or ''.
        priors: attribute with the generator of priors, or ''.
        clip: whether boxes are clipped to the image; None: as the coder.
        own: path of the user's method that decodes, or ''.
        own_clips: whether `own` clips to the upper and the left border.
        needed: entries of `test_cfg` without a default.
        layers: role of a last layer in seeded weights -> pattern of its name, in scaling order.
        classes, quality, boxes: moments of the layers in seeded weights; a few per cent of the scores pass
            the threshold.
    """

    priors: ClassVar[str] = 'prior_generator'
    clip: ClassVar[bool | None] = None
    own: ClassVar[str] = 'bbox_coder.decode'
    own_clips: ClassVar[bool] = False
    needed: ClassVar[tuple[str, ...]] = ('score_thr', 'nms', 'max_per_img')
    layers: ClassVar[Mapping[str, str]] = {
        'box': r'(atss|conv|gfl|retina|rpn|tood|vfnet)_reg|vfnet_reg_refine|bbox_pred|'
        r'retina_bbox_(cls|reg)|conv_shape|reppoints_pts_(init|refine)_out|multi_level_conv_reg\.\d+|'
        r'reg_convs\.\d+\.\d+|(wh|offset)_head\.2|reg_offset_module\.2|rtm_reg\.\d+',
        'quality': r'(atss|conv)_centerness|atss_iou|object_pred|conv_loc|multi_level_conv_obj\.\d+|'
        r'cls_prob_module\.2|rtm_obj\.\d+',
        'class': r'(atss|conv|gfl|retina|rpn|tood|vfnet)_cls|cls_score|reppoints_cls_out|'
        r'multi_level_conv_cls\.\d+|cls_convs\.\d+\.\d+|heatmap_head\.2|rtm_cls\.\d+',
        'mixed': r'convs_pred\.\d+',
    }
    classes: ClassVar[Moments] = (-4.6, 1.3)
    quality: ClassVar[Moments] = (0.5, 1.0)

    def __init__(self, factor: str = '', boxes: Moments = (0.0, 0.4)) -> None:
        self.factor, self.boxes = factor, boxes

    def seeded(self, head: nn.Module, role: str, name: str, channels: int) -> list[Moments]:
        if name == 'rpn_reg':
            return seeded_proposals(channels // head.num_base_priors)
        if role == 'quality':
            return [self.classes if name == 'conv_loc' else self.quality]  # at half of the cells
        if role != 'class':
            return [self.seeded_boxes(head, name)]
        if has_background(head):
            mean, deviation = BACKGROUND_MEAN, self.classes[1]
            return [(0.0, deviation)] * int(head.num_classes) + [(mean, deviation)]
        return [PROPOSAL_CLASSES if nearest_base(type(head), ('RPNHead', 'GARPNHead')) else self.classes]

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return self.boxes

    def describe(self, head: nn.Module) -> Head:
        """Return the outputs of a head, and how they become candidates in mmdet 2.28."""
        if not self.factor:
            return plain_head(head)
        description = factor_head(int(head.cls_out_channels), self.factor)
        return dataclasses.replace(description, **scores_and_sizes(head, head.prior_generator))

    def thresholds(self, test_cfg: Mapping[str, Any]) -> NmsConfig:
        return nms_config(test_cfg)

    def coder(self, head: nn.Module) -> Coder | None:
        return known_coder(head.bbox_coder)

    def decode(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        """Return boxes (N, 4) xyxy in pixels; code of an unknown coder is traced."""
        return head.bbox_coder.decode(priors, rows['bbox_pred'])

    def clips(self, head: nn.Module) -> bool:
        return clips(head) if self.clip is None else self.clip

    def generator(self, head: nn.Module) -> Any:
        return getattr(head, self.priors)

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        return outputs

    def flatten(self, outputs: Any) -> list[torch.Tensor]:
        return [level for levels in outputs for level in levels]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        count = len(self.describe(head).outputs)
        levels = len(maps) // count
        return tuple(list(maps[index * levels : (index + 1) * levels]) for index in range(count))


class FcosKind(HeadKind):
    """`FCOSHead`: distances from points, or their logarithms in strides."""

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return STRIDES if head.norm_on_bbox else (3.4, 0.5)


class RtmdetKind(HeadKind):
    """`RTMDetSepBNHead`: distances from points in strides, or their logarithms."""

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return LOG_STRIDES if head.exp_on_reg else STRIDES


class GflKind(HeadKind):
    layers: ClassVar[Mapping[str, str]] = {'box': r'gfl_reg(\.\d+)?', 'class': r'gfl_cls(\.\d+)?'}

    def describe(self, head: nn.Module) -> Head:
        refuse_softmax(head)
        return Head((('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4 * (head.reg_max + 1))))

    def coder(self, head: nn.Module) -> Coder:
        return box_coders.Integral(bins=head.reg_max + 1, strides=strides(head))

    def decode(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        points = head.anchor_center(priors) if priors.shape[1] == 4 else priors
        sides = head.integral(rows['bbox_pred']) * head.prior_generator.strides[level][0]
        is_read = not isinstance(known_coder(head.bbox_coder), Delta)  # one of deltas is left from the base
        return (head.bbox_coder if is_read else DistanceCoder()).decode(points, sides)

    def seeded(self, head: nn.Module, role: str, name: str, channels: int) -> list[Moments]:
        found = super().seeded(head, role, name, channels)
        classes, sides = int(head.cls_out_channels), 4 * (head.reg_max + 1)
        return found * classes + [self.boxes] * sides if channels == classes + sides else found


class GFocalKind(GflKind):
    """`GFocalHead` of GFLv2: the network outputs scores.

    Without a sigmoid in the loss, an extra column after the classes has no label and is dropped.
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
        return [nn.functional.pad(level, (0, 0, 0, 0, 0, further)) for level in scores], boxes

    def seeded(self, head: nn.Module, role: str, name: str, channels: int) -> list[Moments]:
        found = super().seeded(head, role, name, channels)
        if role != 'class' or not has_background(head):
            return found
        return [self.classes] * int(head.num_classes) + [(UNUSED_MEAN, self.classes[1])]


class VfnetKind(HeadKind):
    """`VFNetHead`; before mmdet 2.18 boxes before refinement are an output, too."""

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        return outputs[0], outputs[-1]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        scores, boxes = super().unflatten(head, maps)
        return (scores, boxes, boxes) if outputs_taken(head) == 3 else (scores, boxes)

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return (0.0, 0.2) if name == 'vfnet_reg_refine' else (-1.0, 0.4)


class ToodKind(HeadKind):
    """`TOODHead`: boxes in strides, and scores that are roots of a product with a quality."""

    clip, own, classes = False, '', (-6.5, 1.3)

    def describe(self, head: nn.Module) -> Head:
        return dataclasses.replace(plain_head(head), activation='none')

    def coder(self, head: nn.Module) -> Coder:
        return box_coders.Scaled(strides=strides(head), around_points=False)

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        if name.startswith('reg_offset_module') or head.anchor_type != 'anchor_free':
            return self.boxes  # offsets at which boxes are sampled, in cells, or deltas
        return LOG_STRIDES


class RepPointsKind(HeadKind):
    """`RepPointsHead`: boxes around points, in strides."""

    clip, own, own_clips = True, '_bbox_decode', True

    def tested(self, head: nn.Module, outputs: Any) -> Any:
        if len(outputs) == 2:
            return outputs
        scores, _, points = outputs
        return scores, [head.points2bbox(level) for level in points]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        scores, boxes = super().unflatten(head, maps)
        if outputs_taken(head) < 3:
            return scores, boxes
        points = [self._points(head, level) for level in boxes]
        return scores, points, points

    def _points(self, head: nn.Module, boxes: torch.Tensor) -> torch.Tensor:
        x, y = (boxes[:, :2] + boxes[:, 2:]).mul(0.5).split(1, 1)
        half_x, half_y = (boxes[:, 2:] - boxes[:, :2]).mul(0.5).split(1, 1)
        if head.transform_method == 'moment':
            growth = head.moment_transfer.exp()
            half_x, half_y = half_x / growth[0], half_y / growth[1]
        points = []
        for index in range(head.num_points - 1):
            side = 1 if index % 2 else -1
            points += [y + side * half_y, x + side * half_x]
        return torch.cat([*points, y, x], 1)

    def coder(self, head: nn.Module) -> Coder:
        return box_coders.Scaled(strides=tuple(head.point_strides), around_points=True)

    def decode(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        return head._bbox_decode(priors, rows['bbox_pred'], head.point_strides[level], (FAR_PX, FAR_PX))

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return (0.0, 0.2) if head.use_grid_points else (0.0, 0.8)  # deltas, which place samples, or points


class FoveaKind(HeadKind):
    """`FoveaHead`: logarithms of distances over a length per level."""

    clip, own, own_clips = True, '_bbox_decode', True

    def describe(self, head: nn.Module) -> Head:
        refuse_softmax(head)
        return dataclasses.replace(plain_head(head), clip_inset=1.0)

    def coder(self, head: nn.Module) -> Coder:
        return box_coders.BaseLength(lengths=tuple(head.base_edge_list))

    def decode(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        return head._bbox_decode(priors, rows['bbox_pred'], head.base_edge_list[level], (FAR_PX, FAR_PX))


class PaaKind(HeadKind):
    """`PAAHead`: ranked by the root of score times predicted IoU; boxes may vote."""

    classes = (-6.5, 1.3)

    def describe(self, head: nn.Module) -> Head:
        refuse_softmax(head)
        description = factor_head(int(head.cls_out_channels), self.factor)
        votes = bool(head.with_score_voting)
        return dataclasses.replace(description, root=True, choose='priors', judged='product', votes=votes)


class GuidedKind(HeadKind):
    """`GuidedAnchorHead`: predicted sizes and cells of anchors."""

    priors, own = 'square_anchor_generator', ''

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
            **scores_and_sizes(head, head.square_anchor_generator),
        )

    def coder(self, head: nn.Module) -> Coder:
        for name in ('anchor_coder', 'bbox_coder'):
            if not isinstance(coder := getattr(head, name), coders.DeltaXYWHBBoxCoder):
                raise ConfigError(
                    f'{type(head).__name__}: {name} is {type(coder).__name__}; expected DeltaXYWHBBoxCoder'
                )
        anchors = dataclasses.replace(delta(head.anchor_coder), wh_ratio_clip=1e-6)
        return dataclasses.replace(delta(head.bbox_coder), anchor_coder=anchors, type='guided')


class SablKind(HeadKind):
    """`SABLRetinaHead`: each side of a box lies in a bucket; the coder returns factors, too."""

    priors, own = 'square_anchor_generator', ''

    def describe(self, head: nn.Module) -> Head:
        columns = 4 * head.side_num
        outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_cls', columns), ('bbox_reg', columns))
        fields = scores_and_sizes(head, head.square_anchor_generator)
        return Head(outputs, factor='confidence', clip_inset=1.0, **fields)

    def coder(self, head: nn.Module) -> Coder:
        return bucket_settings(head)

    def flatten(self, outputs: Any) -> list[torch.Tensor]:
        scores, buckets = outputs
        return [*scores, *(logits for logits, _ in buckets), *(offsets for _, offsets in buckets)]

    def unflatten(self, head: nn.Module, maps: Sequence[torch.Tensor]) -> Any:
        scores, logits, offsets = super().unflatten(head, maps)
        return scores, list(zip(logits, offsets, strict=True))

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return (0.0, 2.0) if name == 'retina_bbox_cls' else self.boxes


class YoloKind(HeadKind):
    """`YOLOV3Head`: one output with place, size, objectness and classes."""

    clip = False

    def describe(self, head: nn.Module) -> Head:
        return Head(
            (('pred_map', int(head.num_attrib)),),
            scores='pred_map',
            first_class=5,
            factor='objectness',
            factor_from=('pred_map', 4),
            choose='all',
            conf_thr=number('conf_thr', head.test_cfg.get('conf_thr', -1), float),
        )

    def coder(self, head: nn.Module) -> Coder | None:
        if not isinstance(head.bbox_coder, coders.YOLOBBoxCoder):
            return None
        return box_coders.Yolo(strides=tuple(head.featmap_strides))

    def decode(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        pred = rows['pred_map']
        pred = torch.cat([pred[:, :2].sigmoid(), pred[:, 2:4]], 1)
        return head.bbox_coder.decode(priors, pred, head.featmap_strides[level])

    def seeded(self, head: nn.Module, role: str, name: str, channels: int) -> list[Moments]:
        if role != 'mixed':
            return super().seeded(head, role, name, channels)
        objectness = (-4.0, 1.3)
        return [self.boxes] * 4 + [objectness] + [self.classes] * (int(head.num_attrib) - 5)


class YoloxKind(HeadKind):
    """`YOLOXHead`: the best class of each prior, no limits."""

    clip, own, quality = False, '_bbox_decode', (-2.0, 1.3)
    needed: ClassVar[tuple[str, ...]] = ('score_thr', 'nms')

    def describe(self, head: nn.Module) -> Head:
        description = factor_head(int(head.cls_out_channels), self.factor)
        return dataclasses.replace(description, choose='best', judged='product', inclusive=True)

    def thresholds(self, test_cfg: Mapping[str, Any]) -> NmsConfig:
        return dataclasses.replace(nms_config(test_cfg), max_per_img=-1)

    def coder(self, head: nn.Module) -> Coder:
        return box_coders.Yolox(strides=strides(head))

    def decode(self, head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
        level_strides = priors.new_tensor(head.prior_generator.strides[level]).expand(len(priors), 2)
        return head._bbox_decode(torch.cat([priors, level_strides], 1), rows['bbox_pred'])


def peak_window(test_cfg: Mapping[str, Any]) -> int:
    """Return `local_maximum_kernel`: side of a peak's square, cells."""
    side = positive('local_maximum_kernel', test_cfg.get('local_maximum_kernel'))
    if side % 2 == 0:
        raise ConfigError(f'test_cfg.local_maximum_kernel={side}: expected an odd number')
    return side


class CenterNetKind(HeadKind):
    """`CenterNetHead`: boxes around peaks, no suppression."""

    priors, clip, own = '', False, ''
    needed: ClassVar[tuple[str, ...]] = ('topk', 'local_maximum_kernel')

    def describe(self, head: nn.Module) -> Head:
        return Head(
            (('heatmap', int(head.num_classes)), ('wh', 2), ('offset', 2)),
            scores='heatmap',
            activation='none',
            peaks=peak_window(head.test_cfg),
            suppresses=False,
            bordered=True,
        )

    def thresholds(self, test_cfg: Mapping[str, Any]) -> NmsConfig:
        topk = positive('topk', test_cfg['topk'])  # the best cells, without a suppression
        return NmsConfig(score_thr=0.0, nms_pre=topk, iou_threshold=1.0, max_per_img=topk)

    def coder(self, head: nn.Module) -> Coder:
        return box_coders.Centre(strides=(CENTERNET_STRIDE,))

    def generator(self, head: nn.Module) -> Any:
        return MlvlPointGenerator([CENTERNET_STRIDE], offset=0.0)

    def seeded_boxes(self, head: nn.Module, name: str) -> Moments:
        return (8.0, 2.5) if name.startswith('wh_head') else (0.5, 0.2)


KINDS: dict[str, HeadKind] = dict(
    AnchorHead=HeadKind(),
    AnchorFreeHead=HeadKind(),
    ATSSHead=HeadKind('centerness'),
    FSAFHead=HeadKind(boxes=(0.5, 0.25)),
    FCOSHead=FcosKind('centerness'),
    AutoAssignHead=HeadKind('objectness', STRIDES),
    DDODHead=HeadKind('iou_pred'),
    VFNetHead=VfnetKind(),
    RTMDetSepBNHead=RtmdetKind(),
    GFLHead=GflKind(boxes=(0.0, 2.0)),
    GFocalHead=GFocalKind(boxes=(0.0, 2.0)),
    PicoDetHead=GflKind(boxes=(0.0, 2.0)),
    TOODHead=ToodKind(),
    RepPointsHead=RepPointsKind(),
    FoveaHead=FoveaKind(),
    PAAHead=PaaKind('iou_pred'),
    GuidedAnchorHead=GuidedKind(),
    SABLRetinaHead=SablKind(),
    YOLOV3Head=YoloKind(),
    CenterNetHead=CenterNetKind(),
    YOLOXHead=YoloxKind('objectness', (0.8, 0.5)),
)
"""Class name of a head, of mmdet or a repository -> its kind; subclasses too."""


def kind_of(head: nn.Module) -> HeadKind:
    name = nearest_base(type(head), KINDS)
    if name is None:
        original = copied_class(type(head), filter(None, map(HEADS.get, KINDS)))
        (nearest,) = difflib.get_close_matches(type(head).__name__, KINDS, 1, 0)
        advice = f'; {trial_words("model.bbox_head", original)}' if original else f' (nearest: {nearest})'
        raise ConfigError(
            f'{place_of_results(head)}: is not a dense head that mm2onnx supports{advice}; else {OWN}'
        )
    if name == 'AnchorFreeHead' and hasattr(head, 'integral'):
        name = 'PicoDetHead'
    return KINDS[name]


def place_of_results(head: nn.Module) -> str:
    """Return the method of `RESULTS` of the head's nearest class (`place_of_method`)."""
    name = _results_name(head)
    return place_of_method(head, name) if name else type(head).__name__


def _results_name(head: nn.Module) -> str:
    return next((name for base in type(head).__mro__ for name in RESULTS if name in vars(base)), '')


def place_of_method(head: nn.Module, path: str) -> str:
    """Return a method's place, as in `your Head.get_bboxes (plugin/head.py:120)`."""
    *parts, name = path.split('.')
    owner = type(functools.reduce(getattr, parts, head))
    defining = next((base for base in owner.__mro__ if name in vars(base)), owner)
    function = inspect.unwrap(getattr(defining, name, None) or defining)
    file, line = place_of(function)
    whose = 'your ' if is_users(function) else ''
    return f'{whose}{defining.__name__}.{name} ({file}:{line})'


def strides(head: nn.Module) -> tuple[int, ...]:
    """Return the stride of each level along x, pixels."""
    return tuple(int(stride[0]) for stride in head.prior_generator.strides)


def base_priors(generator: Any) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Return the priors of each level's first cell: anchors xyxy or points x, y; pixels."""
    if isinstance(generator, LevelPoints):
        levels = [points.tolist() for points in generator.base_points]
    elif isinstance(generator, MlvlPointGenerator):
        levels = [[[side * generator.offset for side in stride]] for stride in generator.strides]
    else:
        levels = [base.tolist() for base in generator.base_anchors]
    return tuple(tuple(tuple(map(float, prior)) for prior in level) for level in levels)
