"""The kinds of one-stage heads of mmrotate 0.3.4: their outputs, coders, and boxes by its own functions.

A detector exports because its head is of a kind. The boxes and scores here are those of mmrotate, for the
proof. Source: `models/dense_heads`, the file of each head, and `core/bbox/coder`.

Glossary: A priors of a level, C classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.ops import min_area_polygons
from mmrotate.core import poly2obb
from mmrotate.core.bbox import coder as coders
from torch import nn

from mm2onnx_mmrotate.deltas import Angles, Delta, delta_of
from mm2onnx_mmrotate.dense.facts import Distance, Points
from mm2onnx_mmrotate.min_area_kernel import min_area_polygons_on_cpu
from mmdeploy_ext.families.heads import Head
from mmdeploy_ext.families.images import ConfigError

Coder = Delta | Distance | Points


def classes_of_angles(coder: Any, sigmoid: bool) -> Angles:
    """Return the settings of a `CSLCoder`.

    `sigmoid` says whether the head decodes scores, else it decodes logits. ConfigError: it is another coder.
    """
    if type(coder) is not coders.CSLCoder:
        raise ConfigError(f'model.bbox_head.angle_coder is {type(coder).__name__}; expected CSLCoder')
    return Angles(
        width=float(coder.omega),
        range=float(coder.angle_range),
        offset=float(coder.angle_offset),
        sigmoid=sigmoid,
    )


def described(head: nn.Module, *outputs: tuple[str, int]) -> Head:
    """Return the description of a head with these outputs behind class logits."""
    outputs = (('cls_score', int(head.cls_out_channels)), *outputs)
    return Head(outputs, activation='sigmoid' if head.use_sigmoid_cls else 'softmax', choose='priors')


class RotatedKind:
    """A kind of head; this one has anchors, and boxes by a `DeltaXYWHAOBBoxCoder`.

    Its methods take a live head of this kind. Boxes (A, 5) are x, y of the centre, width, height in pixels
    and angle in radians. `rows` are name of an output -> its rows (A, columns), `priors` (A, 5) boxes or
    (A, 2) points in pixels; both are of one level and one image, and `level` is its index.

    Attributes:
        clips: whether centres are clipped to the image.
    """

    clips = True

    def describe(self, head: nn.Module) -> Head:
        """Return the outputs of a head, and how they become candidates."""
        return described(head, ('bbox_pred', 5))

    def coder(self, head: nn.Module) -> Coder:
        """Return the settings of the head's coder; ConfigError: it is none that is exported."""
        if type(head.bbox_coder) is not coders.DeltaXYWHAOBBoxCoder:
            name = type(head.bbox_coder).__name__
            raise ConfigError(f'model.bbox_head.bbox_coder is {name}; expected DeltaXYWHAOBBoxCoder')
        return delta_of(head.bbox_coder, 'delta')

    def version(self, head: nn.Module) -> str:
        """Return the version of the angles of results, a key of `angles.VERSIONS`."""
        return head.bbox_coder.angle_range

    def generator(self, head: nn.Module) -> Any:
        """Return the generator of a head's priors; that of a refined head has strides alone."""
        return head.anchor_generator

    def flatten(self, outputs: Any) -> list[torch.Tensor]:
        """Return the outputs of `forward` that results are made of, output by output, level by level.

        `outputs` is what `forward` returned; `rois`, which the network adds to those of a refined head, is
        not among them.
        """
        return [level for levels in outputs for level in levels]

    def boxes(
        self, head: nn.Module, level: int, rows: Mapping[str, torch.Tensor], priors: torch.Tensor
    ) -> torch.Tensor:
        """Return boxes (A, 5), not clipped, by mmrotate's functions."""
        return head.bbox_coder.decode(priors, rows['bbox_pred'])

    def scores(
        self, head: nn.Module, rows: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return class scores (A, C) and score factors (A,) or None."""
        logits = rows['cls_score']
        return (logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]), None


class RefinedKind(RotatedKind):
    """A head whose priors are the boxes of the head before it: they are an output of the network, `rois`."""

    def describe(self, head: nn.Module) -> Head:
        return described(head, ('bbox_pred', 5), ('rois', 5))

    def coder(self, head: nn.Module) -> Coder:
        return dataclasses.replace(super().coder(head), refined=True)


class CslKind(RotatedKind):
    """`CSLRRetinaHead`: the angle, or what is added to that of the anchor, is one of a number of classes."""

    def describe(self, head: nn.Module) -> Head:
        return described(head, ('bbox_pred', 5), ('angle_cls', int(head.coding_len)))

    def coder(self, head: nn.Module) -> Coder:
        angles = classes_of_angles(head.angle_coder, sigmoid=True)
        return dataclasses.replace(super().coder(head), angles=angles, replaced=not head.use_encoded_angle)

    def boxes(
        self, head: nn.Module, level: int, rows: Mapping[str, torch.Tensor], priors: torch.Tensor
    ) -> torch.Tensor:
        angle, deltas = head.angle_coder.decode(rows['angle_cls'].sigmoid()), rows['bbox_pred'].clone()
        if head.use_encoded_angle:
            deltas[..., -1] = angle
            return head.bbox_coder.decode(priors, deltas)
        boxes = head.bbox_coder.decode(priors, deltas)
        boxes[..., -1] = angle
        return boxes


class FcosKind(RotatedKind):
    """`RotatedFCOSHead`: distances from a point to the sides of a box, and its angle."""

    clips = False

    def describe(self, head: nn.Module) -> Head:
        description = described(
            head, ('bbox_pred', 4), ('angle_pred', self.angle_columns(head)), ('centerness', 1)
        )
        factor = dict(factor='factors', factor_from=('centerness', 0))
        return dataclasses.replace(description, activation='sigmoid', **factor)

    def angle_columns(self, head: nn.Module) -> int:
        """Return the number of columns of the output `angle_pred`."""
        return 1

    def coder(self, head: nn.Module) -> Coder:
        if type(head.bbox_coder) is not coders.DistanceAnglePointCoder:
            name = type(head.bbox_coder).__name__
            raise ConfigError(f'model.bbox_head.bbox_coder is {name}; expected DistanceAnglePointCoder')
        return Distance(version=self.version(head))

    def version(self, head: nn.Module) -> str:
        return head.bbox_coder.angle_version

    def generator(self, head: nn.Module) -> Any:
        return head.prior_generator

    def boxes(
        self, head: nn.Module, level: int, rows: Mapping[str, torch.Tensor], priors: torch.Tensor
    ) -> torch.Tensor:
        return head.bbox_coder.decode(priors, torch.cat([rows['bbox_pred'], self.angle(head, rows)], 1))

    def angle(self, head: nn.Module, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the angles (A, 1) in radians by mmrotate's functions."""
        return rows['angle_pred']

    def scores(self, head: nn.Module, rows: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return rows['cls_score'].sigmoid(), rows['centerness'][:, 0].sigmoid()


class CslFcosKind(FcosKind):
    """`CSLRFCOSHead`: the angle is one of a number of classes."""

    def angle_columns(self, head: nn.Module) -> int:
        return int(head.coding_len)

    def coder(self, head: nn.Module) -> Coder:
        return dataclasses.replace(
            super().coder(head), angles=classes_of_angles(head.angle_coder, sigmoid=False)
        )

    def angle(self, head: nn.Module, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return head.angle_coder.decode(rows['angle_pred'])[:, None]


class PointsKind(RotatedKind):
    """Heads of points: a box is the smallest rectangle around nine of them, which are offsets in strides."""

    clips = False

    def describe(self, head: nn.Module) -> Head:
        return described(head, ('pts_pred', 2 * int(head.num_points)))

    def coder(self, head: nn.Module) -> Coder:
        transform = getattr(head, 'transform_method', 'rotrect')
        if transform != 'rotrect':
            raise ConfigError(f'model.bbox_head.transform_method is {transform!r}; expected rotrect')
        return Points(version=self.version(head), strides=list(map(int, head.point_strides)))

    def version(self, head: nn.Module) -> str:
        return head.version

    def generator(self, head: nn.Module) -> Any:
        return head.prior_generator

    def flatten(self, outputs: Any) -> list[torch.Tensor]:
        scores, _, refined, *_ = outputs
        return [*scores, *refined]

    def boxes(
        self, head: nn.Module, level: int, rows: Mapping[str, torch.Tensor], priors: torch.Tensor
    ) -> torch.Tensor:
        offsets = rows['pts_pred'].reshape(len(priors), -1, 2).flip(-1).flatten(1)
        points = offsets * head.point_strides[level] + priors[:, :2].repeat(1, head.num_points)
        with min_area_polygons_on_cpu():
            return poly2obb(min_area_polygons(points), head.version)


KINDS: dict[str, RotatedKind] = dict(
    RotatedAnchorHead=RotatedKind(),
    RotatedRetinaRefineHead=RefinedKind(),
    ODMRefineHead=RefinedKind(),
    KFIoURRetinaRefineHead=RefinedKind(),
    KFIoUODMRefineHead=RefinedKind(),
    CSLRRetinaHead=CslKind(),
    RotatedFCOSHead=FcosKind(),
    CSLRFCOSHead=CslFcosKind(),
    RotatedRepPointsHead=PointsKind(),
    OrientedRepPointsHead=PointsKind(),
    SAMRepPointsHead=PointsKind(),
)
"""Name of a class of mmrotate -> its kind; a subclass is of that of the nearest of its bases that is here."""


def kind_of_class(head: type) -> RotatedKind | None:
    """Return the kind of a class of heads; None: it is derived from none that is exported."""
    return next((KINDS[base.__name__] for base in head.__mro__ if base.__name__ in KINDS), None)


def kind_of(head: nn.Module) -> RotatedKind:
    """Return the kind of a head; ConfigError: its class is derived from none that is exported."""
    kind = kind_of_class(type(head))
    if kind is None:
        raise ConfigError(f'{type(head).__name__}: this head of rotated boxes is not supported')
    return kind
