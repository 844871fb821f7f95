"""From decoder outputs of queries to boxes, without NMS: the branches of a head, and its coder.

Source: fundamentalvision/BEVFormer 66b65f3 and megvii-research/PETR f7525f9,
`core/bbox/coders/nms_free_coder.py`, `core/bbox/util.py`.

Glossary: R queries, K classes, n boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError


def class_branch(channels: int, layers: int, classes: int) -> nn.Sequential:
    """Return `layers` hidden linear layers with normalisation and ReLU, and the linear layer of the logits.

    All hidden layers keep the number of `channels` of the queries (..., channels); logits are (..., classes).
    """
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps, nn.Linear(channels, classes))


def box_branch(channels: int, layers: int, numbers: int) -> nn.Sequential:
    """Return `layers` hidden linear layers with ReLU, and the linear layer of the `numbers` of a box.

    All hidden layers keep the number of `channels` of the queries (..., channels).
    """
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*steps, nn.Linear(channels, numbers))


LOWEST_THRESHOLD, LOWERED = 0.01, 0.9
"""A threshold that nothing passes is multiplied by `LOWERED` until something does; one that falls below
`LOWEST_THRESHOLD` drops nothing."""


def passing(scores: Tensor, threshold: float | None) -> Tensor:
    """Return (n,) bool: whether scores (n,) are above the threshold."""
    if not threshold:
        return torch.ones_like(scores, dtype=torch.bool)
    keep = scores > threshold
    while not keep.any():
        threshold *= LOWERED
        if threshold < LOWEST_THRESHOLD:
            return torch.ones_like(keep)
        keep = scores >= threshold
    return keep


class QueryBoxCoder:
    """The best (query, class) pairs as boxes; one query may give several.

    Args:
        pc_range: of the model, m; kept for heads, decoding does not use it.
        post_center_range: x, y, z low, then high, m, between which centres are kept, ends included.
        max_num: pairs at most.
        score_threshold: see `passing`; None keeps all.
        num_classes: K.
        voxel_size: not used; upstream's configs have it.
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
            name = type(self).__name__
            raise ConfigError(f'{name}: post_center_range is missing; give x, y, z low then high in m')
        self.pc_range, self.post_center_range = pc_range, post_center_range
        self.max_num, self.score_threshold, self.num_classes = max_num, score_threshold, num_classes

    def passing(self, scores: Tensor) -> Tensor:
        """Return which scores (n,) are kept, by the function of the same name."""
        return passing(scores, self.score_threshold)

    def boxes_of(self, codes: Tensor) -> Tensor:
        """Return the boxes (n, 9) of codes (n, 10); see `decode_single`."""
        yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
        return torch.cat([codes[:, [0, 1, 4]], codes[:, [2, 3, 5]].exp(), yaw, codes[:, 8:]], -1)

    def decode_single(self, logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Decode logits (R, K) and box codes (R, 10) of one sample.

        Returns:
            'bboxes' (n, 9) in the LiDAR frame: centre x, y, z, width, length, height in m, yaw in rad from -y
            clockwise, velocity x, y in m/s; of a model that was trained with boxes of mmdet3d 1.x length
            comes before width, and the yaw is from x counter-clockwise; 'scores' (n,), falling; 'labels'
            (n,). Of the best `max_num` pairs, kept are pairs within the range that pass `passing`, which sees
            all their scores.
        """
        if logits.shape[-1] != self.num_classes:
            raise ConfigError(
                f'{type(self).__name__}: bbox_coder.num_classes={self.num_classes}, expected '
                f'{logits.shape[-1]}, the number of classes of the head'
            )
        scores, pairs = logits.sigmoid().view(-1).topk(min(self.max_num, logits.numel()))
        bboxes = self.boxes_of(codes[torch.div(pairs, self.num_classes, rounding_mode='floor')])
        low, high = bboxes.new_tensor(self.post_center_range).split(3)
        keep = ((bboxes[:, :3] >= low) & (bboxes[:, :3] <= high)).all(1) & self.passing(scores)
        return dict(bboxes=bboxes[keep], scores=scores[keep], labels=(pairs % self.num_classes)[keep])


def decoded_samples(
    coder: QueryBoxCoder, outputs: Mapping[str, Tensor], img_metas: Sequence[Mapping[str, Any]]
) -> list[list[Any]]:
    """Return boxes, scores (n,) and labels (n,) of each sample, best first, from the last decoder layer.

    `outputs` of a head are `all_cls_scores` (layers, B, R, K), logits, and `all_bbox_preds` (layers, B, R,
    10), codes of `coder`, for B samples.
    """
    samples = []
    last = zip(outputs['all_cls_scores'][-1], outputs['all_bbox_preds'][-1], img_metas, strict=True)
    for logits, codes, meta in last:
        decoded = coder.decode_single(logits, codes)
        bottom = decoded['bboxes'].clone()
        bottom[:, 2] -= bottom[:, 5] * 0.5
        boxes = meta['box_type_3d'](bottom, bottom.shape[-1])
        samples.append([boxes, decoded['scores'], decoded['labels']])
    return samples
