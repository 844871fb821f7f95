"""Logits and box codes to boxes, without NMS.

Source: exiawsh/StreamPETR 95f6470, core/bbox/coders/nms_free_coder.py and core/bbox/util.py; differs in:
ranges are unchanged, and a request for too many boxes gives all of them.
Glossary: L decoder layers, B batch, Q queries, K classes, n boxes.
"""

from typing import Any

import torch
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from torch import Tensor

from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder


def denormalize_bbox(normalized: Tensor, pc_range: list[float] | Tensor | None = None) -> Tensor:
    """Return the boxes (..., 9 or 7) of predictions (..., 10 or 8).

    Boxes are the centre x, y, z and three sizes, metres, yaw, radians, and velocity, m/s; predictions x, y,
    z, log sizes in the same order, sin yaw, cos yaw, velocity.
    """
    yaw = torch.atan2(normalized[..., 6:7], normalized[..., 7:8])
    return torch.cat([normalized[..., :3], normalized[..., 3:6].exp(), yaw, normalized[..., 8:10]], dim=-1)


@registered_if_named(BBOX_CODERS)
class NMSFreeCoder(QueryBoxCoder, BaseBBoxCoder):
    """The best (query, class) pairs as boxes, see `QueryBoxCoder`; codes as in `denormalize_bbox`."""

    def passing(self, scores: Tensor) -> Tensor:
        return scores >= (self.score_threshold or 0.0)

    def boxes_of(self, codes: Tensor) -> Tensor:
        return denormalize_bbox(codes)

    def encode(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError('NMSFreeCoder only decodes')

    def decode(self, preds_dicts: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the `decode_single` of every sample, of the last decoder layer.

        `preds_dicts` has 'all_cls_scores' (L, B, Q, K), logits, and 'all_bbox_preds' (L, B, Q, 10).
        """
        last = zip(preds_dicts['all_cls_scores'][-1], preds_dicts['all_bbox_preds'][-1], strict=True)
        return [self.decode_single(cls_scores, bbox_preds) for cls_scores, bbox_preds in last]
