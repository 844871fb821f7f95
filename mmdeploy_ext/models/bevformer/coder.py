"""From the logits and box codes of BEVFormer to boxes, without NMS.

StreamPETR has a coder of the same type name with other columns; this one belongs to `BEVFormerHead`.

Source: fundamentalvision/BEVFormer 66b65f3, `core/bbox/coders/nms_free_coder.py`, `core/bbox/util.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError

LOWEST_THRESHOLD, LOWERED = 0.01, 0.9
"""A threshold that nothing passes is lowered by this factor until something does, or it is this low."""


def passing(scores: Tensor, threshold: float | None) -> Tensor:
    """Return which scores (n,) are kept: above the threshold, or from a lower one on if none is above it.

    All are kept if the threshold is None or 0, and if none reaches `LOWEST_THRESHOLD`.
    """
    if not threshold:
        return torch.ones_like(scores, dtype=torch.bool)
    keep = scores > threshold
    while not keep.any():
        threshold *= LOWERED
        if threshold < LOWEST_THRESHOLD:
            return torch.ones_like(keep)
        keep = scores >= threshold
    return keep


class BevBoxCoder:
    """The best (query, class) pairs as boxes; one query may give several.

    Args:
        pc_range: of the view, m.
        post_center_range: x, y, z low, then high, m, between which centres are kept, ends included.
        max_num: pairs at most.
        score_threshold: see `passing`; None keeps all.
        num_classes: K.
        voxel_size: not used; upstream's configs have it.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        max_num: int = 100,
        score_threshold: float | None = None,
        num_classes: int = 10,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        if post_center_range is None:
            raise ConfigError('bbox_coder: post_center_range is missing; give x, y, z low then high in m')
        self.pc_range, self.post_center_range = pc_range, post_center_range
        self.max_num, self.score_threshold, self.num_classes = max_num, score_threshold, num_classes

    def decode_single(self, logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Decode logits (R, K) and box codes (R, 10) of `decode_objects`.

        Returns:
            'bboxes' (n, 9): centre x, y, z, width, length, height in m, yaw in rad, velocity x, y in m/s;
            'scores' (n,), falling; 'labels' (n,).
        """
        scores, pairs = logits.sigmoid().view(-1).topk(min(self.max_num, logits.numel()))
        codes = codes[torch.div(pairs, self.num_classes, rounding_mode='floor')]
        centre, sizes = codes[:, [0, 1, 4]], codes[:, [2, 3, 5]].exp()
        yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
        bboxes = torch.cat([centre, sizes, yaw, codes[:, 8:]], -1)
        low, high = centre.new_tensor(self.post_center_range).split(3)
        keep = ((centre >= low) & (centre <= high)).all(1) & passing(scores, self.score_threshold)
        return dict(bboxes=bboxes[keep], scores=scores[keep], labels=(pairs % self.num_classes)[keep])
