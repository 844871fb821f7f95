"""Decoder outputs of queries to boxes, without NMS: branches of a head, and its coder.

Source: fundamentalvision/BEVFormer 66b65f3 and megvii-research/PETR f7525f9,
`core/bbox/coders/nms_free_coder.py`, `core/bbox/util.py`.
Glossary: B samples, R queries, K classes, n boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ConfigError


def class_branch(channels: int, layers: int, classes: int) -> nn.Sequential:
    """Return `layers` hidden linear layers with normalisation and ReLU, and the layer of the logits."""
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps, nn.Linear(channels, classes))


def box_branch(channels: int, layers: int, numbers: int) -> nn.Sequential:
    """Return `layers` hidden linear layers with ReLU, and the layer of the box `numbers`."""
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*steps, nn.Linear(channels, numbers))


LOWEST_THRESHOLD, LOWERED = 0.01, 0.9
"""Factor that lowers a threshold until a score passes; below `LOWEST_THRESHOLD` all scores pass."""


def passing(scores: Tensor, threshold: float | None) -> Tensor:
    """Return (n,) bool: scores above the threshold, which is lowered until some pass."""
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
        pc_range: of the model, m; unused by decoding.
        post_center_range: x, y, z low, then high, m, of kept centres, ends included.
        max_num: most pairs.
        score_threshold: see `passing`; None keeps all.
        num_classes: K.
        voxel_size: unused.
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
        return passing(scores, self.score_threshold)

    def boxes_of(self, codes: Tensor) -> Tensor:
        """Return boxes (n, 9) of codes (n, 10)."""
        yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
        return torch.cat([codes[:, [0, 1, 4]], codes[:, [2, 3, 5]].exp(), yaw, codes[:, 8:]], -1)

    def decode_single(self, logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Decode logits (R, K) and box codes (R, 10) of one sample.

        Returns:
            'bboxes' (n, 9) in the LiDAR frame: centre x, y, z, width, length, height in m, yaw in rad from -y
                clockwise, velocity x, y in m/s (for a model of mmdet3d 1.x length, width, and yaw from x
                counter-clockwise); 'scores' (n,), falling; 'labels' (n,); 'rows' (n,) of the codes. Kept are
                pairs of the best `max_num` within the range that pass `passing`.
        """
        if logits.shape[-1] != self.num_classes:
            raise ConfigError(
                f'{type(self).__name__}: bbox_coder.num_classes={self.num_classes}, expected '
                f'{logits.shape[-1]}, the number of classes of the head'
            )
        scores, pairs = logits.sigmoid().view(-1).topk(min(self.max_num, logits.numel()))
        rows = torch.div(pairs, self.num_classes, rounding_mode='floor')
        bboxes = self.boxes_of(codes[rows])
        low, high = bboxes.new_tensor(self.post_center_range).split(3)
        keep = ((bboxes[:, :3] >= low) & (bboxes[:, :3] <= high)).all(1) & self.passing(scores)
        labels = pairs % self.num_classes
        return dict(bboxes=bboxes[keep], scores=scores[keep], labels=labels[keep], rows=rows[keep])


def decoded_samples(
    coder: QueryBoxCoder, outputs: Mapping[str, Tensor], img_metas: Sequence[Mapping[str, Any]]
) -> list[list[Any]]:
    """Return boxes, scores (n,) and labels (n,) of each sample, best first, from the last decoder layer.

    `outputs` are `all_cls_scores` (layers, B, R, K), logits, and `all_bbox_preds` (layers, B, R, 10).
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
