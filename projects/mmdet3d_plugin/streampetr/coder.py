"""From logits and box codes to boxes, without NMS.

Source: exiawsh/StreamPETR 95f6470, core/bbox/coders/nms_free_coder.py and core/bbox/util.py; differs in: the
ranges stay what the config says, and asking for more boxes than there are gives all of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError
from projects.mmdet3d_plugin.common.box_codec import denormalize_bbox


@BBOX_CODERS.register_module()
class NMSFreeCoder(BaseBBoxCoder):
    """The best (query, class) pairs as boxes; one query may give several.

    Args:
        pc_range: x, y, z low then high in m; the head's range of box centres.
        post_center_range: boxes with centres outside are dropped, limits included.
        max_num: number of pairs that are looked at.
        score_threshold: lowest score that is kept; None or 0 keeps all.
        voxel_size: not used, upstream's configs give it.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        voxel_size: Sequence[float] | None = None,
        post_center_range: Sequence[float] | None = None,
        max_num: int = 100,
        score_threshold: float | None = None,
        num_classes: int = 10,
    ) -> None:
        if post_center_range is None:
            raise ConfigError('NMSFreeCoder: post_center_range is missing; give x, y, z low then high in m')
        self.pc_range = pc_range
        self.voxel_size = voxel_size
        self.post_center_range = post_center_range
        self.max_num = max_num
        self.score_threshold = score_threshold
        self.num_classes = num_classes

    def encode(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: boxes are encoded where the losses are."""
        raise NotImplementedError('NMSFreeCoder only decodes')

    def decode_single(self, cls_scores: Tensor, bbox_preds: Tensor) -> dict[str, Tensor]:
        """Decode one sample.

        Args:
            cls_scores: (Q, K) logits.
            bbox_preds: (Q, 10) box codes, see `box_codec`.

        Returns:
            'bboxes' (n, 9) with the centre of the volume, 'scores' (n,) falling, 'labels' (n,).
        """
        scores, pairs = cls_scores.sigmoid().view(-1).topk(min(self.max_num, cls_scores.numel()))
        queries = torch.div(pairs, self.num_classes, rounding_mode='floor')
        bboxes = denormalize_bbox(bbox_preds[queries])
        low, high = bboxes.new_tensor(self.post_center_range).split(3)
        keep = ((bboxes[:, :3] >= low) & (bboxes[:, :3] <= high)).all(dim=1)
        if self.score_threshold:
            keep &= scores >= self.score_threshold
        return {'bboxes': bboxes[keep], 'scores': scores[keep], 'labels': (pairs % self.num_classes)[keep]}

    def decode(self, preds_dicts: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Decode the last layer of 'all_cls_scores' (L, B, Q, K) and 'all_bbox_preds' (L, B, Q, 10)."""
        last = zip(preds_dicts['all_cls_scores'][-1], preds_dicts['all_bbox_preds'][-1], strict=True)
        return [self.decode_single(cls_scores, bbox_preds) for cls_scores, bbox_preds in last]
