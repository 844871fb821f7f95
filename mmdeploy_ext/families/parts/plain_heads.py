"""What a kind of dense head says, and the kinds that decode by `BaseDenseHead.get_bboxes` and a box coder.

Source: mmdet 2.28.2 `models/dense_heads/base_dense_head.py`, `core/bbox/coder`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmdet.core.anchor.anchor_generator import SSDAnchorGenerator
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.dense_head import Head, factor_head
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.rtmdet.head import RTMDetSepBNHead

heads, coders = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.core.bbox.coder')

Rows = 'Mapping[str, torch.Tensor]'


def _flat(outputs: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for kind in outputs for tensor in kind]


def class_scores(
    head: nn.Module, rows: Rows, priors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
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
        coder: returns the coder's settings, as `families/parts/runtime/box_coders.py` reads them.
        boxes: (head, level, rows of one image, priors) -> boxes (A, 4), not clipped, by upstream's functions.
        clips: returns whether boxes are clipped to the image.
        scores: (head, rows of one image, priors) -> class scores (A, C) and score factors (A,) or None, by
            PyTorch and functions of upstream.
        generator: attribute with what makes the priors, or what returns it.
        flat: outputs of `forward` -> tensors, kind by kind.
        fixed: entries of `test_cfg` that its `get_bboxes` does not look at -> what it does instead.
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
    scores: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = class_scores
    generator: str | Callable[[nn.Module], Any] = 'prior_generator'
    flat: Callable[[Any], list[torch.Tensor]] = _flat
    fixed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    limit: str = 'max_per_img'
    needed: Sequence[str] = ('score_thr', 'nms', 'max_per_img')
    maps: Callable[..., Mapping[str, torch.Tensor]] = lambda head, maps: maps


def delta(coder: Any) -> dict[str, Any]:
    """Return the settings of a `DeltaXYWHBBoxCoder`."""
    clamp = dict(ctr_clamp=coder.ctr_clamp) if coder.add_ctr_clamp else {}
    return dict(type='delta', means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=0.016, **clamp)


def _legacy(coder: Any) -> dict[str, Any]:
    settings = dict(means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=0.016)
    return dict(settings, type='delta', pixel=1.0)


CODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    coders.DeltaXYWHBBoxCoder: delta,
    coders.LegacyDeltaXYWHBBoxCoder: _legacy,
    coders.TBLRBBoxCoder: lambda coder: dict(type='tblr', normalizer=coder.normalizer),
    coders.DistancePointBBoxCoder: lambda coder: dict(type='distance'),
}
"""Coders that any head may have -> their settings."""


def chosen_coder(head: nn.Module, where: str = 'model.bbox_head') -> dict[str, Any]:
    """Return the settings of the coder that the config chose; `where` is said in the message."""
    for kind, settings in CODERS.items():
        if type(head.bbox_coder) is kind:
            return settings(head.bbox_coder)
    known = ', '.join(kind.__name__ for kind in CODERS)
    raise ConfigError(f'{where}.bbox_coder is {type(head.bbox_coder).__name__}; expected {known}')


def strides(head: nn.Module) -> list[int]:
    """Return the stride of each level, pixels."""
    return [int(stride[0]) for stride in head.prior_generator.strides]


def scored(head: nn.Module, generator: str = 'prior_generator') -> dict[str, Any]:
    """Return how class scores are made, sigmoid or softmax with the background last, and the size of maps."""
    by_stride = not isinstance(getattr(head, generator), SSDAnchorGenerator)
    return dict(activation='sigmoid' if head.use_sigmoid_cls else 'softmax', maps_by_stride=by_stride)


def plain_head(head: nn.Module) -> Head:
    """Return a head of class scores and boxes alone."""
    outputs = (('cls_score', int(head.cls_out_channels)), ('bbox_pred', 4))
    return Head(outputs, clip_inset=border_inset(head), **scored(head))


def border_inset(head: nn.Module) -> float:
    """Return how many pixels inside the right and bottom border boxes are clipped; 1 in mmdet 1.x."""
    return float(isinstance(head.bbox_coder, coders.LegacyDeltaXYWHBBoxCoder))


def _with_factor(factor: str) -> Callable[[nn.Module], Head]:
    return lambda head: dataclasses.replace(factor_head(int(head.cls_out_channels), factor), **scored(head))


def decoded(head: nn.Module, level: int, rows: Rows, priors: torch.Tensor) -> torch.Tensor:
    """Return what the head's own box coder gives; see `Kind.boxes`."""
    return head.bbox_coder.decode(priors, rows['bbox_pred'])


def clips(head: nn.Module) -> bool:
    """Return whether the head's own box coder clips; that of mmdet 1.x always does."""
    return getattr(head.bbox_coder, 'clip_border', True)


def _base(upstream: type, head: Callable[[nn.Module], Head] = plain_head) -> Kind:
    return Kind(upstream, head, chosen_coder, decoded, clips)


PLAIN: dict[str, Kind] = dict(
    AnchorHead=_base(heads.AnchorHead),
    AnchorFreeHead=_base(heads.AnchorFreeHead),
    ATSSHead=_base(heads.ATSSHead, _with_factor('centerness')),
    FCOSHead=_base(heads.FCOSHead, _with_factor('centerness')),
    AutoAssignHead=_base(heads.AutoAssignHead, _with_factor('objectness')),
    DDODHead=_base(heads.DDODHead, _with_factor('iou_pred')),
    VFNetHead=_base(heads.VFNetHead),
    RTMDetSepBNHead=_base(RTMDetSepBNHead),
)
"""Class of mmdet, or of mmdet 3, that decodes as its base class does -> its kind."""
